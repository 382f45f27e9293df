// The C door to PagedBatch.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/expect.h"
#include "c/door.h"
#include "c/paged.h"
#include "kvcache/paged_batch.h"

using kvcache::DType;
using kvcache::MutableTensorView;
using kvcache::PagedBatch;
using kvcache::Status;
using kvcache::TensorView;
using kvcache::internal::c_call;
using kvcache::internal::expect_array;
using kvcache::internal::expect_not_null;
using kvcache::internal::ForeignExecutor;
using kvcache::internal::make_view;
using kvcache::internal::refusal;
using kvcache::internal::tensor_of;

struct kvc_batch {
  PagedBatch batch;
};

namespace {

// A call on a batch: fn(batch).
template <typename Batch, typename Fn>
kvc_status with(Batch* batch, Fn&& fn) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("batch", batch));
    return fn(batch->batch);
  });
}

// One with keys, values and an executor: fn(batch, key, value, context).
template <typename Batch, typename Fn>
kvc_status with_rows(Batch* batch, const kvc_tensor* key, const kvc_tensor* value,
                     const kvc_executor* executor, Fn&& fn) {
  return with(batch, [&](auto& target) -> Status {
    KVC_ASSIGN_OR_RETURN(const MutableTensorView k, tensor_of("key", key));
    KVC_ASSIGN_OR_RETURN(const MutableTensorView v, tensor_of("value", value));
    ForeignExecutor host;
    KVC_RETURN_IF_ERROR(host.adopt(executor));
    return fn(target, k, v, host.context());
  });
}

kvcache::Result<std::span<const std::int64_t>> numbers(const char* name, const std::int64_t* array,
                                                       std::int64_t count) {
  KVC_RETURN_IF_ERROR(expect_array(name, array, count));
  return std::span(array, static_cast<std::size_t>(count));
}

// A number of each row: ask(batch, row).
template <typename Ask>
kvc_status number_each(const kvc_batch* batch, const char* name, std::int64_t* numbers,
                       std::int64_t num_rows, Ask&& ask) {
  return with(batch, [&](const PagedBatch& rows) -> Status {
    KVC_RETURN_IF_ERROR(expect_array(name, numbers, num_rows));
    if (num_rows != rows.num_rows()) {
      return refusal("num_rows", num_rows, rows.num_rows());
    }
    std::vector<std::int64_t> found;
    for (std::int64_t row = 0; row < num_rows; ++row) {
      KVC_ASSIGN_OR_RETURN(const std::int64_t number, ask(rows, row));
      found.push_back(number);
    }
    std::copy(found.begin(), found.end(), numbers);
    return {};
  });
}

}  // namespace

kvc_status kvc_batch_create(kvc_paged* cache, int64_t num_rows, kvc_batch** batch) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("cache", cache));
    KVC_RETURN_IF_ERROR(expect_not_null("batch", batch));
    KVC_ASSIGN_OR_RETURN(PagedBatch made, PagedBatch::create(cache->cache, num_rows));
    *batch = std::make_unique<kvc_batch>(kvc_batch{std::move(made)}).release();
    return {};
  });
}

void kvc_batch_free(kvc_batch* batch) { delete batch; }

kvc_status kvc_batch_begin(kvc_batch* batch, const int64_t* counts, int64_t num_rows,
                           const int32_t* tokens, int64_t num_tokens) {
  return with(batch, [&](PagedBatch& rows) -> Status {
    KVC_ASSIGN_OR_RETURN(const auto given, numbers("counts", counts, num_rows));
    if (tokens == nullptr) num_tokens = 0;
    KVC_RETURN_IF_ERROR(expect_array("tokens", tokens, num_tokens));
    return rows.begin(given, {tokens, static_cast<std::size_t>(num_tokens)});
  });
}

kvc_status kvc_batch_write(kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                           const kvc_tensor* value, const kvc_executor* executor) {
  return with_rows(
      batch, key, value, executor,
      [&](PagedBatch& rows, const TensorView& k, const TensorView& v,
          const kvcache::ExecContext& context) { return rows.write(layer, k, v, context); });
}

kvc_status kvc_batch_commit(kvc_batch* batch, const int64_t* accepted, int64_t num_rows) {
  return with(batch, [&](PagedBatch& rows) -> Status {
    if (accepted == nullptr) num_rows = 0;
    KVC_ASSIGN_OR_RETURN(const auto given, numbers("accepted", accepted, num_rows));
    return rows.commit(given);
  });
}

kvc_status kvc_batch_rollback(kvc_batch* batch) {
  return with(batch, [](PagedBatch& rows) { return rows.rollback(); });
}

kvc_status kvc_batch_update(kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                            const kvc_tensor* value, const kvc_executor* executor) {
  return with_rows(
      batch, key, value, executor,
      [&](PagedBatch& rows, const TensorView& k, const TensorView& v,
          const kvcache::ExecContext& context) { return rows.update(layer, k, v, context); });
}

kvc_status kvc_batch_view(const kvc_batch* batch, int64_t layer, kvc_view** view) {
  return with(batch,
              [&](const PagedBatch& rows) { return make_view("view", view, rows.view(layer)); });
}

kvc_status kvc_batch_gather(const kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                            const kvc_tensor* value, const kvc_executor* executor) {
  return with_rows(
      batch, key, value, executor,
      [&](const PagedBatch& rows, const MutableTensorView& k, const MutableTensorView& v,
          const kvcache::ExecContext& context) { return rows.gather(layer, k, v, context); });
}

kvc_status kvc_batch_lengths(const kvc_batch* batch, int64_t layer, int64_t* lengths,
                             int64_t num_rows) {
  return number_each(
      batch, "lengths", lengths, num_rows,
      [&](const PagedBatch& rows, std::int64_t row) { return rows.seq_length(row, layer); });
}

kvc_status kvc_batch_first_positions(const kvc_batch* batch, int64_t layer, int64_t* positions,
                                     int64_t num_rows) {
  return number_each(
      batch, "positions", positions, num_rows,
      [&](const PagedBatch& rows, std::int64_t row) { return rows.first_position(row, layer); });
}

kvc_status kvc_batch_rows_held(const kvc_batch* batch, int64_t layer, int64_t* held,
                               int64_t num_rows) {
  return number_each(batch, "held", held, num_rows, [&](const PagedBatch& rows, std::int64_t row) {
    return rows.rows_held(row, layer);
  });
}

int64_t kvc_batch_num_rows(const kvc_batch* batch) {
  return batch == nullptr ? 0 : batch->batch.num_rows();
}

kvc_status kvc_batch_add(kvc_batch* batch, int64_t count) {
  return with(batch, [&](PagedBatch& rows) { return rows.add(count); });
}

kvc_status kvc_batch_replace(kvc_batch* batch, int64_t row, int64_t seq) {
  return with(batch, [&](PagedBatch& rows) { return rows.replace(row, kvcache::SequenceId{seq}); });
}

kvc_status kvc_batch_release(kvc_batch* batch, int64_t row) {
  return with(batch, [&](PagedBatch& rows) { return rows.release(row); });
}

void kvc_batch_reset(kvc_batch* batch) {
  if (batch != nullptr) batch->batch.reset();
}

kvc_status kvc_batch_select(kvc_batch* batch, const int64_t* indices, int64_t num_indices) {
  return with(batch, [&](PagedBatch& rows) -> Status {
    KVC_RETURN_IF_ERROR(expect_array("indices", indices, num_indices));
    return rows.select(TensorView(indices, DType::kI64, {num_indices}));
  });
}

kvc_status kvc_batch_repeat(kvc_batch* batch, int64_t n) {
  return with(batch, [&](PagedBatch& rows) { return rows.repeat(n); });
}

kvc_status kvc_batch_fork(kvc_batch* batch, kvc_batch** forked) {
  return c_call([&]() -> Status {
    KVC_RETURN_IF_ERROR(expect_not_null("batch", batch));
    KVC_RETURN_IF_ERROR(expect_not_null("forked", forked));
    KVC_ASSIGN_OR_RETURN(PagedBatch made, batch->batch.fork());
    *forked = std::make_unique<kvc_batch>(kvc_batch{std::move(made)}).release();
    return {};
  });
}

kvc_status kvc_batch_rewind(kvc_batch* batch, const int64_t* counts, int64_t num_rows) {
  return with(batch, [&](PagedBatch& rows) -> Status {
    KVC_ASSIGN_OR_RETURN(const auto given, numbers("counts", counts, num_rows));
    return rows.rewind(given);
  });
}

kvc_status kvc_batch_truncate(kvc_batch* batch, int64_t n) {
  return with(batch, [&](PagedBatch& rows) { return rows.truncate(n); });
}
