// KvDtype: how a runner stores keys and values, as --kv-dtype says it:
//
//   WORDS   ITEM { "," ITEM }, or "@" FILE: a file with items in its lines, and remarks behind '#'
//   ITEM    [ "k=" or "v=" ] FORM [ ":" LAYERS ]
//   FORM    f32, f16, bf16, or a coded form, int8, fp8_e4m3, int4, lm4, q8_0, q4_0, with "-rotated"
//           or "-unrotated" behind it where it should not be as it is by itself (RowFormat)
//   LAYERS  N, or N "-" M with both ends, from 0; none: all that no other item names
//
// "int8"; "k=int8,v=lm4"; "int8:0-3,lm4"; "k=int8-rotated:0-1,k=lm4,v=int4". What no item names is
// stored in the type of the model.
#ifndef KVCACHE_RUNNER_MODEL_KV_DTYPE_H_
#define KVCACHE_RUNNER_MODEL_KV_DTYPE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/kvcache.h"
#include "runner/config/model_config.h"

namespace kvcache::runner {

class KvDtype {
 public:
  KvDtype() = default;                  // the type of the model
  KvDtype(DType dtype);                 // NOLINT: implicit
  KvDtype(std::optional<DType> dtype);  // NOLINT: implicit; none: that of the model

  // Errors: kInvalidArgument naming the item, what was found and what is there to choose from;
  // kNotFound, kIo for a file; kInvalidArgument for one of more than 64 KiB.
  static Result<KvDtype> parse(std::string_view words);

  // The newest so many tokens stay plain in coded layers (CacheConfig::residual_tokens); 0 by
  // default.
  void keep_plain(std::int64_t residual_tokens) noexcept { residual_tokens_ = residual_tokens; }
  std::int64_t residual_tokens() const noexcept { return residual_tokens_; }

  // What each layer stores, [num_layers]; what no item names in `otherwise`. Errors:
  // kInvalidArgument for layers that the model has not, for rows that two items name, and for
  // residual_tokens where no layer is coded. Whether a head size allows a form is for the cache to
  // say.
  Result<std::vector<LayerSpec>> layers(const ModelConfig& config, DType otherwise) const;

  // Whether only pages can hold such rows: coded ones, or layers, or keys and values, that differ.
  bool needs_pages() const noexcept;
  bool is_coded() const noexcept;  // anywhere

  // As it was given; of a file its items. Empty: the type of the model.
  const std::string& words() const noexcept { return words_; }

 private:
  struct Item {
    std::string words;
    bool keys = true, values = true;
    RowFormat format;
    std::int64_t first_layer = -1, last_layer = -1;  // -1: all that no other item names
  };
  static Result<Item> parse_item(std::string_view words);

  std::vector<Item> items_;
  std::string words_;
  std::int64_t residual_tokens_ = 0;
};

// The element type of plain rows that all layers share; none where rows are coded or differ.
std::optional<DType> one_dtype(std::span<const LayerSpec> layers) noexcept;

// Bytes of one token in all layers.
std::int64_t bytes_per_token(std::span<const LayerSpec> layers) noexcept;

}  // namespace kvcache::runner

#endif  // KVCACHE_RUNNER_MODEL_KV_DTYPE_H_
