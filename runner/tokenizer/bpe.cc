#include "runner/tokenizer/bpe.h"

#include <algorithm>
#include <queue>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "runner/tokenizer/component.h"
#include "runner/tokenizer/utf8.h"

namespace kvcache::runner {
namespace {

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// The token that stands for a byte: <0x0A>.
std::string token_of_byte(std::size_t byte) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

}  // namespace

Result<Bpe> Bpe::create(const JsonObject& model) {
  // The oldest files leave the type out.
  KVC_ASSIGN_OR_RETURN(const std::string type, model.text("type", "BPE"));
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
  Bpe result;
  result.where_ = model.where();
  KVC_ASSIGN_OR_RETURN(result.ignore_merges_, model.boolean("ignore_merges", false));
  KVC_ASSIGN_OR_RETURN(result.byte_fallback_, model.boolean("byte_fallback", false));
  KVC_ASSIGN_OR_RETURN(result.fuse_unknown_, model.boolean("fuse_unk", false));
  KVC_ASSIGN_OR_RETURN(result.unknown_token_, model.text("unk_token", ""));
  KVC_RETURN_IF_ERROR(result.read_vocabulary(model));
  KVC_RETURN_IF_ERROR(result.read_merges(model));
  return result;
}

Status Bpe::read_vocabulary(const JsonObject& model) {
  KVC_ASSIGN_OR_RETURN(const JsonObject vocab, model.object("vocab"));
  std::vector<bool> taken;
  vocabulary_.reserve(vocab.node().size());
  for (const auto& [token, unused] : vocab.node().items()) {
    KVC_ASSIGN_OR_RETURN(const std::int64_t id, vocab.integer(token, 0, kMaxTokenId));
    if (static_cast<std::size_t>(id) >= taken.size())
      taken.resize(static_cast<std::size_t>(id) + 1);
    if (taken[static_cast<std::size_t>(id)]) {
      return vocab.error(StatusCode::kCorrupt, token, "an id no other token has");
    }
    taken[static_cast<std::size_t>(id)] = true;
    vocabulary_.emplace(token, static_cast<std::int32_t>(id));
  }
  for (std::size_t code_point = 0; code_point < id_of_character_.size(); ++code_point) {
    std::string character;
    append_utf8(static_cast<char32_t>(code_point), &character);
    id_of_character_[code_point] = find(character);
  }
  for (std::size_t byte = 0; byte < id_of_byte_.size(); ++byte) {
    id_of_byte_[byte] = find(token_of_byte(byte));
  }
  if (!unknown_token_.empty()) unknown_id_ = find(unknown_token_);
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

std::int32_t Bpe::find(std::string_view token) const {
  const auto it = vocabulary_.find(token);
  return it == vocabulary_.end() ? -1 : it->second;
}

bool Bpe::append_bytes(std::string_view character, std::vector<std::int32_t>* ids) const {
  const auto id_of = [this](char byte) { return id_of_byte_[static_cast<unsigned char>(byte)]; };
  if (std::any_of(character.begin(), character.end(), [&](char c) { return id_of(c) < 0; })) {
    return false;
  }
  for (const char byte : character) ids->push_back(id_of(byte));
  return true;
}

// As merge_word of tokenizers' BPE, which holds an unknown token back until the next known
// character: bytes that come between overtake it.
Status Bpe::append_characters(std::string_view word, std::vector<std::int32_t>* ids) const {
  bool unknown_waits = false;
  const auto end_unknown = [&] {
    if (std::exchange(unknown_waits, false)) ids->push_back(unknown_id_);
  };
  while (!word.empty()) {
    const Utf8Step step = next_utf8(word);
    const std::string_view character = word.substr(0, step.length);
    word.remove_prefix(step.length);
    const std::int32_t id = step.code_point < id_of_character_.size()
                                ? id_of_character_[step.code_point]
                                : find(character);
    if (id >= 0) {
      end_unknown();
      ids->push_back(id);
      continue;
    }
    if (byte_fallback_ && append_bytes(character, ids)) continue;
    if (unknown_token_.empty()) continue;
    if (unknown_id_ < 0) {
      return found_expected(StatusCode::kUnsupported, where_ + ": unk_token",
                            describe(std::string_view(unknown_token_)),
                            "a token of the vocabulary, for " + describe(character));
    }
    if (!fuse_unknown_) end_unknown();
    unknown_waits = true;
  }
  end_unknown();
  return Status();
}

// Symbols are a linked list over an array, candidates a heap. A merge does not search the heap for
// the candidates it makes stale; they are seen to be stale when they come up.
Status Bpe::encode(std::string_view word, std::vector<std::int32_t>* ids) const {
  if (ignore_merges_) {
    const std::int32_t id = find(word);
    if (id >= 0) {
      ids->push_back(id);
      return Status();
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
  std::vector<std::int32_t> characters;
  KVC_RETURN_IF_ERROR(append_characters(word, &characters));
  if (characters.empty()) return Status();
  std::vector<Symbol> symbols;
  symbols.reserve(characters.size());
  for (const std::int32_t id : characters) {
    const auto at = static_cast<std::int64_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
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
  return Status();
}

}  // namespace kvcache::runner
