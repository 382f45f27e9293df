#include "bench/digest.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/digest_store.h"
#include "kvcache/backend.h"
#include "runner/model/model.h"

namespace kvcache::bench {
namespace {

constexpr float kUnseen = -std::numeric_limits<float>::infinity();
constexpr DType kRowTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr const char* kReference = "reference";

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

struct Step {
  const char* name;
  std::vector<std::int32_t> queries;  // [num_seqs]
  bool wants_lse = true;
};

// What a case asks for beside plain causal attention.
struct Variant {
  const char* name = "plain";
  AttentionOptions options = {};
  bool alibi = false, sinks = false, mask = false;
  DType q = DType::kF32, out = DType::kF32;
};

Variant variant(const char* name) {
  Variant made;
  made.name = name;
  return made;
}

// Plain and reproducible, which go with every storage and every step.
std::vector<Variant> main_variants() {
  std::vector<Variant> all = {variant("plain"), variant("reproducible")};
  all[1].options.reproducible = true;
  return all;
}

std::vector<Variant> other_variants() {
  std::vector<Variant> all;
  const auto add = [&](const char* name) -> Variant& {
    all.push_back(variant(name));
    return all.back();
  };
  add("window 100").options.window = 100;
  Variant& window = add("window 600 and 4 first tokens");
  window.options.window = 600;
  window.options.sink_tokens = 4;
  add("sinks").sinks = true;
  add("ALiBi").alibi = true;
  add("softcap").options.softcap = 1.5f;
  add("mask").mask = true;
  Variant& seen = add("not causal, scale");
  seen.options.causal = false;
  seen.options.scale = 0.1875f;
  Variant& partial = add("partial");
  partial.options.partial = partial.sinks = true;
  add("prefixes apart").options.share_prefixes = false;
  Variant& most = add("window, sinks, ALiBi, softcap, mask");
  most.options.window = 700;
  most.options.sink_tokens = 2;
  most.options.softcap = 2;
  most.sinks = most.alibi = most.mask = true;
  Variant& reproducible = add("mask, softcap, reproducible");
  reproducible.options.softcap = 2;
  reproducible.options.reproducible = reproducible.mask = true;
  add("queries f16").q = DType::kF16;
  add("queries bf16").q = DType::kBF16;
  add("results f16").out = DType::kF16;
  add("results bf16").out = DType::kBF16;
  return all;
}

// A part of the list: rows, the heads that ask for them, and how.
struct Section {
  DigestRows rows;
  std::int32_t heads = 4;
  std::vector<Step> steps;
  std::vector<Variant> variants;
  bool all_storages = false;  // else one that is contiguous, one of pages and one that shares
};

// Lengths around the ends of pages and of cuts; prefixes that end in the middle of both.
DigestRows main_rows() {
  DigestRows rows;
  rows.lengths = {1100, 20, 700, 513, 64, 1030, 33, 1100};
  rows.shared = {0, 20, 600, 513, 0, 1024, 7, 1100};
  return rows;
}

std::vector<Section> sections() {
  std::vector<Section> all(2);
  const Step decode = {"decode", {1, 2, 3, 4, 5, 6, 7, 8}};
  const Step prefill = {"prefill", {20, 0, 33, 9, 0, 17, 0, 12}};
  all[0].rows = main_rows();
  all[0].steps = {decode,
                  prefill,
                  {"decode and prefill", {1, 2, 20, 0, 8, 9, 7, 1}},
                  {"1 each", std::vector<std::int32_t>(8, 1), false},
                  {"8 each", std::vector<std::int32_t>(8, 8), false},
                  {"20 each", std::vector<std::int32_t>(8, 20), false}};
  all[0].variants = main_variants();
  all[0].all_storages = true;
  all[1].rows = main_rows();
  all[1].steps = {decode, prefill};
  all[1].variants = other_variants();
  struct Heads {
    std::int32_t heads, kv_heads, k_dim, v_dim;
  };
  for (const Heads& heads : {Heads{7, 1, 80, 80}, Heads{4, 4, 128, 128}, Heads{40, 1, 32, 32},
                             Heads{6, 2, 48, 80}, Heads{3, 3, 33, 17}}) {
    Section section;
    section.rows = {heads.kv_heads, heads.k_dim, heads.v_dim, {600, 130, 64}, {0, 100, 0}};
    section.heads = heads.heads;
    section.steps = {{"decode", {1, 8, 3}}, {"prefill", {20, 9, 33}}};
    section.variants = main_variants();
    all.push_back(std::move(section));
  }
  return all;
}

std::vector<std::byte> packed(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * at(size_of(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::byte* to = bytes.data() + i * at(size_of(dtype));
    if (dtype == DType::kF32) std::memcpy(to, &values[i], 4);
    const std::uint16_t half =
        dtype == DType::kF16 ? to_float16(values[i]).bits : to_bfloat16(values[i]).bits;
    if (dtype != DType::kF32) std::memcpy(to, &half, 2);
  }
  return bytes;
}

std::vector<float> unpacked(const std::vector<std::byte>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / at(size_of(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::byte* from = bytes.data() + i * at(size_of(dtype));
    if (dtype == DType::kF32) std::memcpy(&values[i], from, 4);
    std::uint16_t bits = 0;
    if (dtype != DType::kF32) std::memcpy(&bits, from, 2);
    if (dtype == DType::kF16) values[i] = to_float(Float16{bits});
    if (dtype == DType::kBF16) values[i] = to_float(BFloat16{bits});
  }
  return values;
}

// Relative root mean square; infinite where one is finite and the other not, or the infinities
// differ.
double difference(const std::vector<float>& found, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(expected[i]) || !std::isfinite(found[i])) {
      if (found[i] != expected[i]) return std::numeric_limits<double>::infinity();
      continue;
    }
    error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

// What one call is made of, and what it wrote.
class Subject {
 public:
  Subject(const Section& section, const Step& step, const Variant& asked)
      : out_dtype_(asked.out), rows_(section.rows) {
    call_.qo_indptr = {0};
    for (const std::int32_t count : step.queries) {
      call_.qo_indptr.push_back(call_.qo_indptr.back() + count);
    }
    const std::int64_t total = call_.qo_indptr.back(), heads = section.heads;
    make_queries(step, heads, asked.q);
    out_.resize(at(total * heads * rows_.v_dim * size_of(asked.out)));
    call_.out = MutableTensorView(out_.data(), asked.out, {total, heads, rows_.v_dim});
    if (step.wants_lse) {
      lse_.resize(at(total * heads));
      call_.lse = MutableTensorView(lse_.data(), DType::kF32, {total, heads});
    }
    call_.options = asked.options;
    for (std::int64_t head = 0; head < heads; ++head) {
      slopes_.push_back(1.0f / static_cast<float>(std::int64_t{2} << (head % 12)));
      sinks_.push_back(static_cast<float>(head % 7) / 4 - 1);
    }
    if (asked.alibi) call_.options.alibi_slopes = slopes_.data();
    if (asked.sinks) call_.options.sinks = sinks_.data();
    if (asked.mask) make_mask(step);
  }
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  const DigestCall& call() const { return call_; }

  // Results are poisoned before.
  Status run(DigestStore& store, const std::string& backend, const ExecContext& context) {
    call_.options.backend = backend.c_str();
    std::fill(out_.begin(), out_.end(), std::byte{0xff});
    std::fill(lse_.begin(), lse_.end(), std::numeric_limits<float>::quiet_NaN());
    return store.attend(call_, context);
  }

  std::uint64_t bits() const {
    const std::uint64_t digest = digest_bytes(out_.data(), std::ssize(out_));
    return digest_bytes(lse_.data(), 4 * std::ssize(lse_), digest);
  }

  // Results and lse, each as floats.
  std::pair<std::vector<float>, std::vector<float>> results() const {
    return {unpacked(out_, out_dtype_), lse_};
  }

 private:
  void make_queries(const Step& step, std::int64_t heads, DType dtype) {
    std::vector<float> q;
    for (std::size_t seq = 0; seq < step.queries.size(); ++seq) {
      for (std::int64_t row = 0; row < step.queries[seq]; ++row) {
        for (std::int64_t head = 0; head < heads; ++head) {
          for (std::int64_t d = 0; d < rows_.k_dim; ++d) {
            q.push_back(
                digest_value(DigestStream::kQuery, static_cast<std::int64_t>(seq), row, head, d));
          }
        }
      }
    }
    q_ = packed(q, dtype);
    call_.q = TensorView(q_.data(), dtype, {call_.qo_indptr.back(), heads, rows_.k_dim});
  }

  // One key in six is hidden, the others take a term.
  void make_mask(const Step& step) {
    const auto seqs = static_cast<std::int64_t>(step.queries.size());
    const std::int64_t queries = *std::max_element(step.queries.begin(), step.queries.end());
    const std::int64_t keys = *std::max_element(rows_.lengths.begin(), rows_.lengths.end());
    mask_.reserve(at(seqs * queries * keys));
    for (std::int64_t seq = 0; seq < seqs; ++seq) {
      for (std::int64_t i = 0; i < queries; ++i) {
        for (std::int64_t j = 0; j < keys; ++j) {
          const float term = digest_value(DigestStream::kMask, seq, i, 0, j);
          mask_.push_back(term < -1.33f ? kUnseen : term);
        }
      }
    }
    call_.mask = TensorView(mask_.data(), DType::kF32, {seqs, 1, queries, keys});
  }

  DigestCall call_;
  DType out_dtype_;
  const DigestRows& rows_;
  std::vector<std::byte> q_, out_;
  std::vector<float> lse_, mask_, slopes_, sinks_;
};

Result<std::vector<std::string>> backend_names() {
  KVC_ASSIGN_OR_RETURN(const auto all, backends());
  std::vector<std::string> names = {kReference};  // first: the others are held against it
  for (const BackendInfo& each : all) {
    if (each.available && each.name != kReference) names.push_back(each.name);
  }
  return names;
}

class Lister {
 public:
  Lister(const DigestOptions& options, std::vector<std::string> backends)
      : options_(options), backends_(std::move(backends)) {}

  std::vector<Digest> take() { return std::move(digests_); }

  Status list(const Section& section, DType dtype) {
    KVC_ASSIGN_OR_RETURN(const auto all, digest_stores(section.rows, dtype));
    std::vector<DigestStore*> stores;
    for (const auto& store : all) {
      const std::string name = store->name();
      if (section.all_storages || name == "contiguous, hnd" || name == "pages of 16, nhd" ||
          name == "shared pages of 16, hnd") {
        stores.push_back(store.get());
      }
    }
    const std::string rows = std::to_string(section.heads) + "/" +
                             std::to_string(section.rows.kv_heads) + " x " +
                             std::to_string(section.rows.k_dim) + "+" +
                             std::to_string(section.rows.v_dim) + " " + name_of(dtype);
    if (wanted(rows + ", rows") && section.variants.size() == main_variants().size()) {
      for (DigestStore* store : stores) {
        if (!store->shows_rows()) continue;
        KVC_ASSIGN_OR_RETURN(const std::uint64_t bits, store->rows());
        digests_.push_back({rows + ", rows", store->name(), "", bits, 0, 0});
      }
    }
    for (const Step& step : section.steps) {
      for (const Variant& asked : section.variants) {
        const std::string name = rows + ", " + step.name + ", " + asked.name;
        if (!wanted(name)) continue;
        KVC_RETURN_IF_ERROR(list_calls(name, section, dtype, step, asked, stores));
      }
    }
    return {};
  }

  // Logits of fixed tokens: a prompt, then one token after another.
  Status list_model(const runner::Model& model, DType dtype) {
    constexpr std::int64_t kPrompt = 24, kTokens = 32;
    std::vector<std::int32_t> tokens;
    for (std::int64_t i = 0; i < kTokens; ++i) {
      tokens.push_back(static_cast<std::int32_t>((i * 97 + 41) % model.config().vocab_size));
    }
    std::map<runner::HistoryKind, std::vector<float>> expected;
    for (const std::string& backend : backends_) {
      for (const auto kind :
           {runner::HistoryKind::kNone, runner::HistoryKind::kDynamic, runner::HistoryKind::kStatic,
            runner::HistoryKind::kPaged, runner::HistoryKind::kFunctional}) {
        const bool cached = kind != runner::HistoryKind::kNone;
        const std::string name =
            std::string("logits, ") + name_of(dtype) + (cached ? "" : ", without a cache");
        if (!wanted(name)) continue;
        runner::HistoryOptions store_options;
        store_options.kind = kind;
        store_options.dtype = dtype;
        store_options.max_length = kTokens;
        KVC_ASSIGN_OR_RETURN(auto store, runner::make_history(model.config(), store_options));
        runner::ForwardState state;
        AttentionOptions attention;
        attention.backend = backend.c_str();
        std::vector<float> all, logits;
        for (std::int64_t end = kPrompt; end <= kTokens; ++end) {
          const std::int64_t begin = cached && end > kPrompt ? end - 1 : 0;
          KVC_RETURN_IF_ERROR(model.forward(std::span(tokens).subspan(at(begin), at(end - begin)),
                                            *store, state, logits, runner::LogitRows::kLast,
                                            attention, options_.context));
          all.insert(all.end(), logits.begin(), logits.end());
        }
        if (backend == kReference) expected[kind] = all;
        // Stored rows of 16 bits may differ in their last bit where the layers before differ.
        const double tolerance = dtype == DType::kF32 ? 1e-4 : dtype == DType::kF16 ? 2e-3 : 3e-2;
        digests_.push_back({name, runner::name_of(kind), backend,
                            digest_bytes(all.data(), 4 * std::ssize(all)),
                            difference(all, expected[kind]), tolerance});
      }
    }
    return {};
  }

 private:
  bool wanted(const std::string& name) const {
    return name.find(options_.filter) != std::string::npos;
  }

  Status list_calls(const std::string& name, const Section& section, DType dtype, const Step& step,
                    const Variant& asked, const std::vector<DigestStore*>& stores) {
    Subject subject(section, step, asked);
    std::pair<std::vector<float>, std::vector<float>> expected;
    for (const std::string& backend : backends_) {
      for (DigestStore* store : stores) {
        if (!store->takes(subject.call())) continue;
        KVC_RETURN_IF_ERROR(subject.run(*store, backend, options_.context));
        if (backend == kReference && expected.first.empty()) expected = subject.results();
        const auto found = subject.results();
        digests_.push_back({name, store->name(), backend, subject.bits(),
                            std::max(difference(found.first, expected.first),
                                     difference(found.second, expected.second)),
                            tolerance_of(section, dtype, step, asked, backend)});
      }
    }
    return {};
  }

  static double tolerance_of(const Section& section, DType dtype, const Step& step,
                             const Variant& asked, const std::string& backend) {
    // The last bit of a result in 16 bits may round either way.
    double tolerance = asked.out == DType::kBF16 ? 2e-3 : asked.out == DType::kF16 ? 3e-4 : 1e-5;
    const bool prefills =
        section.heads / section.rows.kv_heads > 32 ||
        std::any_of(step.queries.begin(), step.queries.end(), [](auto n) { return n > 8; });
    if (backend == "avx512bf16" && dtype == DType::kBF16 && prefills &&
        !asked.options.reproducible) {
      tolerance = std::max(tolerance, 5e-3);
    }
    return tolerance;
  }

  const DigestOptions& options_;
  std::vector<std::string> backends_;
  std::vector<Digest> digests_;
};

std::string hexadecimal(std::uint64_t bits) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(bits));
  return text;
}

std::string describe(const Digest& digest) {
  return digest.name + "; " + digest.storage + "; " + digest.backend;
}

}  // namespace

Result<std::vector<Digest>> run_digest(const DigestOptions& options,
                                       const std::function<void(int, int)>& on_progress) {
  KVC_ASSIGN_OR_RETURN(auto names, backend_names());
  Lister lister(options, std::move(names));
  const std::vector<Section> all = sections();
  const int total = 3 * static_cast<int>(all.size()) + (options.model.empty() ? 0 : 3);
  int done = 0;
  for (const Section& section : all) {
    for (const DType dtype : kRowTypes) {
      on_progress(done++, total);
      KVC_RETURN_IF_ERROR(lister.list(section, dtype));
    }
  }
  if (!options.model.empty()) {
    KVC_ASSIGN_OR_RETURN(const runner::Model model, runner::Model::load(options.model));
    for (const DType dtype : kRowTypes) {
      on_progress(done++, total);
      KVC_RETURN_IF_ERROR(lister.list_model(model, dtype));
    }
  }
  return lister.take();
}

Status check_digests(const std::vector<Digest>& digests) {
  std::map<std::pair<std::string, std::string>, const Digest*> first;
  for (const Digest& digest : digests) {
    if (!(digest.error <= digest.tolerance)) {
      char numbers[64];
      std::snprintf(numbers, sizeof(numbers), "error %.1e, expected at most %.1e", digest.error,
                    digest.tolerance);
      return Status(StatusCode::kInternal, describe(digest) + ": found a wrong answer, " + numbers);
    }
    const Digest* same = first.try_emplace({digest.name, digest.backend}, &digest).first->second;
    if (same->bits != digest.bits) {
      return Status(StatusCode::kInternal, describe(digest) + ": found " +
                                               hexadecimal(digest.bits) + ", expected " +
                                               hexadecimal(same->bits) + " as in " + same->storage);
    }
  }
  return {};
}

std::string to_json(const std::vector<Digest>& digests) {
  nlohmann::ordered_json json;
  json["digests"] = nlohmann::ordered_json::array();
  for (const Digest& each : digests) {
    json["digests"].push_back({{"name", each.name},
                               {"storage", each.storage},
                               {"backend", each.backend},
                               {"bits", hexadecimal(each.bits)},
                               {"error", std::isfinite(each.error) ? each.error : 1e300}});
  }
  return json.dump(1);
}

}  // namespace kvcache::bench
