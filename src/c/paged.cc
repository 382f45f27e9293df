// The C door to PagedCache.
#include <cstring>
#include <memory>
#include <span>

#include "base/expect.h"
#include "c/door.h"
#include "c/paged.h"
#include "kvcache/cache_file.h"
#include "kvcache/paged_cache.h"

using kvcache::Append;
using kvcache::DType;
using kvcache::LayerSpec;
using kvcache::MutableTensorView;
using kvcache::PagedCache;
using kvcache::Result;
using kvcache::RowFormat;
using kvcache::SequenceId;
using kvcache::Status;
using kvcache::StatusCode;
using kvcache::internal::c_call;
using kvcache::internal::dtype_of;
using kvcache::internal::expect_array;
using kvcache::internal::expect_not_null;
using kvcache::internal::for_each_struct;
using kvcache::internal::ForeignExecutor;
using kvcache::internal::make_view;
using kvcache::internal::read_struct;
using kvcache::internal::refusal;
using kvcache::internal::tensor_of;
using kvcache::internal::write_struct;

struct kvc_step {
  PagedCache::Step step;
};

namespace {

static_assert(sizeof(SequenceId) == sizeof(std::int64_t));

// A cache, and the host's memory that it lives in, for all who share it.
struct CacheAndMemory {
  CacheAndMemory(std::unique_ptr<kvcache::internal::ForeignMemory> lent, PagedCache made) noexcept
      : memory(std::move(lent)), cache(std::move(made)) {}

  std::unique_ptr<kvcache::internal::ForeignMemory> memory;  // null: the system's
  PagedCache cache;
};

std::vector<SequenceId> ids_of(const std::int64_t* seqs, std::int64_t count) {
  std::vector<SequenceId> ids;
  ids.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) ids.push_back(SequenceId{seqs[i]});
  return ids;
}

Status expect_room(const char* name, std::int64_t capacity, std::size_t needed) {
  if (capacity >= 0 && static_cast<std::uint64_t>(capacity) >= needed) return {};
  return refusal(StatusCode::kOutOfRange, name, "room for " + std::to_string(capacity),
                 "at least " + std::to_string(needed));
}

Status expect_step(const kvc_paged* cache, const kvc_step* step) {
  KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
  return expect_not_null("step", step);
}

// A call about some sequences of a cache: fn(ids).
template <typename Fn>
kvc_status with_seqs(const kvc_paged* cache, const std::int64_t* seqs, std::int64_t num_seqs,
                     Fn&& fn) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_array("seqs", seqs, num_seqs));
    return fn(ids_of(seqs, num_seqs));
  });
}

// One that asks for a number of each: ask(id).
template <typename Ask>
kvc_status number_each(const kvc_paged* cache, const std::int64_t* seqs, std::int64_t num_seqs,
                       const char* name, std::int64_t* numbers, Ask&& ask) {
  return with_seqs(cache, seqs, num_seqs, [&](const std::vector<SequenceId>& ids) -> Status {
    KVC_RETURN_IF_ERROR(expect_array(name, numbers, num_seqs));
    std::vector<std::int64_t> found;
    found.reserve(ids.size());
    for (const SequenceId id : ids) {
      KVC_ASSIGN_OR_RETURN(const std::int64_t number, ask(id));
      found.push_back(number);
    }
    std::copy(found.begin(), found.end(), numbers);
    return {};
  });
}

kvcache::PrefixNamespace space_of(const unsigned char* bits) {
  kvcache::PrefixNamespace space;
  if (bits != nullptr) std::memcpy(space.bits.data(), bits, space.bits.size());
  return space;
}

Result<RowFormat> format_of(const char* name, std::int32_t form, std::int32_t rotate, DType dtype) {
  const auto field = [name](const char* what) { return std::string(name) + what; };
  if (form < KVC_PLAIN || form > KVC_Q4_0) return refusal(field("_form"), form, "0 .. 6");
  if (rotate < -1 || rotate > 1) return refusal(field("_rotate"), rotate, "-1 .. 1");
  if (form == KVC_PLAIN) return RowFormat{RowFormat::kStrided, dtype, rotate == 1};
  const auto kind = static_cast<RowFormat::Kind>(form);
  RowFormat format = kvcache::coded(kind);
  format.dtype = dtype;
  if (rotate != 0) format.rotate = rotate == 1;
  return format;
}

}  // namespace

kvc_status kvc_paged_create(const kvc_paged_config* config, kvc_paged** cache) {
  return c_call([&]() -> Status {
    kvc_paged_config from;
    KVC_RETURN_IF_ERROR(read_struct("config", config, &from));
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    if (from.layout != KVC_HND && from.layout != KVC_NHD) {
      return refusal("config.layout", from.layout, "KVC_HND or KVC_NHD");
    }
    kvcache::CacheConfig wanted;
    wanted.layout = static_cast<kvcache::Layout>(from.layout);
    if (from.page_size != 0) wanted.page_size = from.page_size;
    wanted.num_pages = from.num_pages;
    wanted.budget_bytes = from.budget_bytes;
    wanted.rewind_tokens = from.rewind_tokens;
    wanted.residual_tokens = from.residual_tokens;
    if (from.prefixes != 0 && from.prefixes != 1) {
      return refusal("config.prefixes", from.prefixes, "0 or 1");
    }
    wanted.prefixes = from.prefixes == 1;
    KVC_RETURN_IF_ERROR(kvcache::internal::expect_unused("config.reserved_too", from.reserved_too));
    KVC_RETURN_IF_ERROR(for_each_struct(
        "layers", from.layers, from.num_layers,
        [&](std::int64_t, const kvc_layer_spec& layer) -> Status {
          KVC_ASSIGN_OR_RETURN(const DType k_dtype, dtype_of("layers.k", layer.k_dtype));
          KVC_ASSIGN_OR_RETURN(const DType v_dtype, dtype_of("layers.v", layer.v_dtype));
          const kvcache::Life life{layer.window, layer.chunk, layer.sink_tokens};
          KVC_ASSIGN_OR_RETURN(const RowFormat k,
                               format_of("layers.k", layer.k_form, layer.k_rotate, k_dtype));
          KVC_ASSIGN_OR_RETURN(const RowFormat v,
                               format_of("layers.v", layer.v_form, layer.v_rotate, v_dtype));
          wanted.layers.push_back(
              LayerSpec::kv(layer.num_kv_heads, layer.k_head_dim, layer.v_head_dim, k, v)
                  .living(life));
          return kvcache::internal::expect_unused("layers.reserved", layer.reserved);
        }));
    std::unique_ptr<kvcache::internal::ForeignMemory> memory;
    if (from.memory != nullptr) {
      memory = std::make_unique<kvcache::internal::ForeignMemory>();
      KVC_RETURN_IF_ERROR(memory->adopt(from.memory));
      wanted.memory = memory.get();
    }
    KVC_ASSIGN_OR_RETURN(PagedCache made, PagedCache::create(wanted));
    const auto shared = std::make_shared<CacheAndMemory>(std::move(memory), std::move(made));
    *cache = std::make_unique<kvc_paged>(kvc_paged{{shared, &shared->cache}}).release();
    return {};
  });
}

void kvc_paged_free(kvc_paged* cache) { delete cache; }

kvc_status kvc_paged_open(kvc_paged* cache, int64_t* seq) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("seq", seq));
    KVC_ASSIGN_OR_RETURN(const SequenceId opened, cache->cache->open());
    *seq = static_cast<std::int64_t>(opened);
    return {};
  });
}

kvc_status kvc_paged_release(kvc_paged* cache, int64_t seq) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    return cache->cache->release(SequenceId{seq});
  });
}

kvc_status kvc_paged_reserve(kvc_paged* cache, const kvc_append* appends, int64_t num_appends,
                             kvc_step** step) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("step", step));
    std::vector<Append> wanted;
    KVC_RETURN_IF_ERROR(for_each_struct(
        "appends", appends, num_appends, [&](std::int64_t, const kvc_append& append) {
          Append& to = wanted.emplace_back();
          to.seq = SequenceId{append.seq};
          to.count = append.count;
          if (append.tokens != nullptr && append.count > 0) {
            to.tokens = {append.tokens, static_cast<std::size_t>(append.count)};
          }
          return Status();
        }));
    KVC_ASSIGN_OR_RETURN(PagedCache::Step reserved, cache->cache->reserve(wanted));
    // Rolls back by itself if there is no memory for the handle.
    *step = std::make_unique<kvc_step>(kvc_step{std::move(reserved)}).release();
    return {};
  });
}

kvc_status kvc_paged_write(kvc_paged* cache, kvc_step* step, int64_t layer, const kvc_tensor* k,
                           const kvc_tensor* v, const kvc_executor* executor) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_step(cache, step));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView key, tensor_of("k", k));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView value, tensor_of("v", v));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    return cache->cache->write(step->step, layer, key, value, host.context());
  });
}

kvc_status kvc_paged_step_view(const kvc_paged* cache, const kvc_step* step, int64_t layer,
                               kvc_view** view) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_step(cache, step));
    return make_view("view", view, cache->cache->view(step->step, layer));
  });
}

kvc_status kvc_paged_commit(kvc_paged* cache, kvc_step* step, const int64_t* accepted,
                            int64_t num_accepted) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_step(cache, step));
    if (accepted == nullptr) num_accepted = 0;
    KVC_RETURN_IF_ERROR(expect_array("accepted", accepted, num_accepted));
    return cache->cache->commit(step->step, {accepted, static_cast<std::size_t>(num_accepted)});
  });
}

kvc_status kvc_paged_rollback(kvc_paged* cache, kvc_step* step) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_step(cache, step));
    return cache->cache->rollback(step->step);
  });
}

int64_t kvc_step_num_new_tokens(const kvc_step* step) {
  return step == nullptr ? 0 : step->step.num_new_tokens();
}

void kvc_step_free(kvc_step* step) { delete step; }

kvc_status kvc_paged_view(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                          int64_t num_seqs, kvc_view** view) {
  return with_seqs(cache, seqs, num_seqs, [&](const std::vector<SequenceId>& ids) {
    return make_view("view", view, cache->cache->view(layer, ids));
  });
}

kvc_status kvc_paged_fork(kvc_paged* cache, int64_t seq, int64_t length, int64_t* forked) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("forked", forked));
    KVC_ASSIGN_OR_RETURN(const SequenceId made, cache->cache->fork(SequenceId{seq}, length));
    *forked = static_cast<std::int64_t>(made);
    return {};
  });
}

kvc_status kvc_paged_reaches(const kvc_paged* cache, int64_t seq, int64_t length) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    return cache->cache->reaches(SequenceId{seq}, length);
  });
}

kvc_status kvc_paged_hold_rows(kvc_paged* cache, int64_t seq, int32_t hold) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    return cache->cache->hold_rows(SequenceId{seq}, hold != 0);
  });
}

kvc_status kvc_paged_truncate(kvc_paged* cache, int64_t seq, int64_t n) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    return cache->cache->truncate(SequenceId{seq}, n);
  });
}

kvc_status kvc_paged_rewind(kvc_paged* cache, int64_t seq, int64_t n) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    return cache->cache->rewind(SequenceId{seq}, n);
  });
}

kvc_status kvc_paged_reorder(kvc_paged* cache, const int64_t* seqs, int64_t num_seqs,
                             const int64_t* beam_idx) {
  return with_seqs(cache, seqs, num_seqs, [&](const std::vector<SequenceId>& ids) -> Status {
    KVC_RETURN_IF_ERROR(expect_array("beam_idx", beam_idx, num_seqs));
    return cache->cache->reorder(ids,
                                 kvcache::TensorView(beam_idx, kvcache::DType::kI64, {num_seqs}));
  });
}

kvc_status kvc_paged_gather(const kvc_paged* cache, int64_t layer, int64_t seq,
                            const kvc_tensor* key, const kvc_tensor* value,
                            const kvc_executor* executor) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView k, tensor_of("key", key));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView v, tensor_of("value", value));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    return cache->cache->gather(layer, SequenceId{seq}, k, v, host.context());
  });
}

kvc_status kvc_paged_block_table(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                                 int64_t num_seqs, int32_t* pages, int64_t capacity,
                                 int64_t* max_pages) {
  return with_seqs(cache, seqs, num_seqs, [&](const std::vector<SequenceId>& ids) -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("max_pages", max_pages));
    KVC_ASSIGN_OR_RETURN(const kvcache::BlockTable table, cache->cache->block_table(layer, ids));
    if (pages != nullptr) {
      KVC_RETURN_IF_ERROR(expect_room("pages", capacity, table.pages.size()));
      std::copy(table.pages.begin(), table.pages.end(), pages);
    }
    *max_pages = table.max_pages;
    return {};
  });
}

kvc_status kvc_paged_slot_mapping(const kvc_paged* cache, const kvc_step* step, int64_t layer,
                                  int32_t* slots, int64_t capacity) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_step(cache, step));
    KVC_ASSIGN_OR_RETURN(const auto found, cache->cache->slot_mapping(step->step, layer));
    KVC_RETURN_IF_ERROR(expect_room("slots", capacity, found.size()));
    KVC_RETURN_IF_ERROR(expect_array("slots", slots, static_cast<std::int64_t>(found.size())));
    std::copy(found.begin(), found.end(), slots);
    return {};
  });
}

kvc_status kvc_paged_lengths(const kvc_paged* cache, const int64_t* seqs, int64_t num_seqs,
                             int64_t* lengths) {
  return number_each(cache, seqs, num_seqs, "lengths", lengths,
                     [&](SequenceId id) { return cache->cache->seq_length(id); });
}

kvc_status kvc_paged_first_positions(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                                     int64_t num_seqs, int64_t* positions) {
  return number_each(cache, seqs, num_seqs, "positions", positions,
                     [&](SequenceId id) { return cache->cache->first_position(layer, id); });
}

kvc_status kvc_paged_rows_held(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                               int64_t num_seqs, int64_t* rows) {
  return number_each(cache, seqs, num_seqs, "rows", rows,
                     [&](SequenceId id) { return cache->cache->rows_held(layer, id); });
}

kvc_status kvc_paged_save(const kvc_paged* cache, int64_t seq, const char* path,
                          const unsigned char* name_space) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    return kvcache::CacheFile::save(*cache->cache, SequenceId{seq}, path, space_of(name_space));
  });
}

kvc_status kvc_paged_load(kvc_paged* cache, const char* path, const unsigned char* name_space,
                          const kvc_executor* executor, int64_t* seq) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("path", path));
    KVC_RETURN_IF_ERROR(expect_not_null("seq", seq));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    KVC_ASSIGN_OR_RETURN(
        const SequenceId loaded,
        kvcache::CacheFile::load(*cache->cache, path, space_of(name_space), host.context()));
    *seq = static_cast<std::int64_t>(loaded);
    return {};
  });
}

kvc_status kvc_paged_get_stats(const kvc_paged* cache, kvc_paged_stats* stats) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    kvc_paged_stats ours = {};
    const kvcache::PagedStats found = cache->cache->stats();
    ours.pages_total = found.pages_total;
    ours.pages_held = found.pages_held;
    ours.pages_reserved = found.pages_reserved;
    ours.pages_high_water = found.pages_high_water;
    ours.pages_copied = found.pages_copied;
    ours.rows_copied = found.rows_copied;
    ours.rows_encoded = found.rows_encoded;
    ours.pages_cached = found.pages_cached;
    ours.sequences = found.sequences;
    ours.open_steps = found.open_steps;
    ours.nbytes = cache->cache->nbytes();
    ours.reserved_bytes = cache->cache->reserved_bytes();
    return write_struct("stats", ours, stats);
  });
}
