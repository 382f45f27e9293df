#include "runner/tokenizer/bpe.h"

#include <algorithm>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>

#include "runner/tokenizer/byte_alphabet.h"
#include "runner/tokenizer/pre_tokenizer.h"

namespace kvcache::runner {
namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// Bytes that occur in UTF-8.
bool occurs_in_text(int byte) { return byte != 0xC0 && byte != 0xC1 && byte <= 0xF4; }

}  // namespace

Result<Bpe> Bpe::create(const JsonObject& model) {
  KVC_ASSIGN_OR_RETURN(const std::string type, model.text("type"));
  if (type != "BPE") return model.error(StatusCode::kUnsupported, "type", "BPE");
  KVC_RETURN_IF_ERROR(refuse_unknown_keys(
      model, {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  if (const Json* dropout = model.find("dropout"); dropout != nullptr && *dropout != Json(0.0)) {
    return model.error(StatusCode::kUnsupported, "dropout", "none");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    KVC_ASSIGN_OR_RETURN(const std::string affix, model.text(key, ""));
    if (!affix.empty()) return model.error(StatusCode::kUnsupported, key, "none");
  }
  KVC_ASSIGN_OR_RETURN(const bool byte_fallback, model.boolean("byte_fallback", false));
  if (byte_fallback) {
    return model.error(StatusCode::kUnsupported, "byte_fallback", "false with ByteLevel");
  }
  KVC_ASSIGN_OR_RETURN(const std::string unknown, model.text("unk_token", ""));
  Bpe result;
  KVC_ASSIGN_OR_RETURN(result.ignore_merges_, model.boolean("ignore_merges", false));
  KVC_RETURN_IF_ERROR(result.read_vocabulary(model));
  KVC_RETURN_IF_ERROR(result.read_merges(model));
  for (int byte = 0; byte < 256 && !unknown.empty(); ++byte) {
    if (result.id_of_byte_[byte] < 0 && occurs_in_text(byte)) {
      return model.error(StatusCode::kUnsupported, "unk_token",
                         "none, or a vocabulary with a token for every byte");
    }
  }
  return result;
}

Status Bpe::read_vocabulary(const JsonObject& model) {
  KVC_ASSIGN_OR_RETURN(const JsonObject vocab, model.object("vocab"));
  std::vector<bool> taken;
  vocabulary_.reserve(vocab.node().size());
  id_of_bytes_.reserve(vocab.node().size());
  for (const auto& [token, unused] : vocab.node().items()) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t id, vocab.integer(token, 0, kMaxTokenId));
    if (static_cast<std::size_t>(id) >= taken.size())
      taken.resize(static_cast<std::size_t>(id) + 1);
    if (taken[static_cast<std::size_t>(id)]) {
      return vocab.error(StatusCode::kCorrupt, token, "an id no other token has");
    }
    taken[static_cast<std::size_t>(id)] = true;
    vocabulary_.emplace(token, static_cast<std::int32_t>(id));
    // Tokens with other characters are never reached from text, only from ids.
    if (std::optional<std::string> bytes = bytes_of_token(token)) {
      id_of_bytes_.emplace(*std::move(bytes), static_cast<std::int32_t>(id));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto it = id_of_bytes_.find(std::string_view(&c, 1));
    id_of_byte_[byte] = it == id_of_bytes_.end() ? -1 : it->second;
  }
  return Status();
}

Status Bpe::read_merges(const JsonObject& model) {
  const Json* merges = model.find("merges");
  if (merges == nullptr || !merges->is_array() ||
      merges->size() > static_cast<std::size_t>(INT32_MAX)) {
    return model.error(StatusCode::kCorrupt, "merges", "a list");
  }
  merges_.reserve(merges->size());
  std::int32_t rank = 0;
  for (const Json& merge : *merges) {
    const std::string where = model.where() + ": merges[" + std::to_string(rank) + "]";
    if (const auto* line = merge.get_ptr<const Json::string_t*>()) {
      const std::string_view text = *line;
      const std::size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return found_expected(StatusCode::kCorrupt, where, describe(merge),
                              "two tokens and a space between them");
      }
      KVC_RETURN_IF_ERROR(add_merge(text.substr(0, space), text.substr(space + 1), rank, where));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      KVC_RETURN_IF_ERROR(add_merge(*merge[0].get_ptr<const Json::string_t*>(),
                                    *merge[1].get_ptr<const Json::string_t*>(), rank, where));
    } else {
      return found_expected(StatusCode::kCorrupt, where, describe(merge), "two tokens");
    }
    ++rank;
  }
  return Status();
}

Status Bpe::add_merge(std::string_view left, std::string_view right, std::int32_t rank,
                      const std::string& where) {
  std::int32_t ids[3] = {};
  const std::string joined = std::string(left) + std::string(right);
  const std::string_view tokens[3] = {left, right, joined};
  for (int i = 0; i < 3; ++i) {
    const auto it = vocabulary_.find(tokens[i]);
    if (it == vocabulary_.end()) {
      return found_expected(StatusCode::kCorrupt, where, describe(tokens[i]),
                            "a token of the vocabulary");
    }
    ids[i] = it->second;
  }
  // Of a pair listed twice the later rank holds, as in tokenizers.
  merges_[key_of(ids[0], ids[1])] = {rank, ids[2]};
  return Status();
}

const Bpe::Merge* Bpe::find_merge(std::int32_t left, std::int32_t right) const {
  const auto it = merges_.find(key_of(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

// Symbols are a linked list over an array, candidates a heap. A merge does not search the heap for
// the candidates it makes stale; they are seen to be stale when they come up.
void Bpe::encode(std::string_view word, std::vector<std::int32_t>* ids) const {
  if (ignore_merges_) {
    const auto it = id_of_bytes_.find(word);
    if (it != id_of_bytes_.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  struct Symbol {
    std::int32_t id;  // -1: merged into the one before
    std::int64_t previous;
    std::int64_t next;  // -1: none
  };
  struct Candidate {
    std::int32_t rank;
    std::int32_t id;
    std::int64_t at;
    bool operator<(const Candidate& other) const {  // the heap's top is its greatest
      return std::tie(other.rank, other.at) < std::tie(rank, at);
    }
  };
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const char c : word) {
    const std::int32_t id = id_of_byte_[static_cast<unsigned char>(c)];
    if (id < 0) continue;
    const auto at = static_cast<std::int64_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  const auto symbol = [&symbols](std::int64_t at) -> Symbol& {
    return symbols[static_cast<std::size_t>(at)];
  };

  std::priority_queue<Candidate> queue;
  const auto offer = [&](std::int64_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const Merge* merge = find_merge(symbol(at).id, symbol(symbol(at).next).id);
    if (merge != nullptr) queue.push({merge->rank, merge->id, at});
  };
  for (std::size_t at = 0; at + 1 < symbols.size(); ++at) offer(static_cast<std::int64_t>(at));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.at);
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbol(left.next).previous = best.at;
    offer(left.previous);
    offer(best.at);
  }
  for (std::int64_t at = 0; at >= 0; at = symbol(at).next) ids->push_back(symbol(at).id);
}

}  // namespace kvcache::runner
