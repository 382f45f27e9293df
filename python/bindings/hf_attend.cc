#include "python/bindings/hf_attend.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "kvcache/executor.h"
#include "python/bindings/errors.h"
#include "python/bindings/kv_view.h"
#include "python/bindings/torch_threads.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;

namespace kvcache::python {
namespace {

// Elements below which waking another thread costs more than it saves: some 10 microseconds of
// work.
constexpr std::int64_t kShared = 1 << 16;

// Floats of partial results for which a thread keeps its plan; scratch of larger calls goes with
// them, as a thread may never see such a call again.
constexpr std::int64_t kKept = 1 << 20;

// The most partial results that attention over `view` spills: a row of every cut of 512 keys.
std::int64_t partial_floats(const KvView& view, const TensorView& query) {
  std::int64_t longest = 0;
  for (std::int32_t seq = 0; seq < view.num_seqs; ++seq) {
    longest = std::max(longest, total_length(view, seq));
  }
  const std::int64_t rows = times(times(query.shape[0], query.shape[1]), query.shape[2]);
  return times(times(rows, longest / 512 + 1), std::int64_t{view.v_head_dim} + 2);
}

// An array [count] of one type, dense; None is none.
Array list_of(const char* name, nb::handle object, Element element, std::int64_t count) {
  if (object.is_none()) return {};
  Array array(name, object);
  const TensorView& view = array.raw();
  if (array.element() != element || view.rank != 1 || view.shape[0] != count ||
      (count > 1 && view.strides[0] != 1)) {
    const char* const type = element == Element::kI32 ? "int32" : "float32";
    raise(PyExc_ValueError, std::string(name) + ": found " + array.describe() +
                                ", expected dense " + type + " [" + std::to_string(count) + "]");
  }
  return array;
}

}  // namespace

Status wrong_tensor(const std::string& name, const TensorView& found, const std::string& expected) {
  std::string text = name + ": found [";
  for (std::int32_t axis = 0; axis < found.rank; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(found.shape[axis]);
  }
  return Status(StatusCode::kInvalidArgument,
                text + "] " + python_name(found.dtype) + ", expected " + expected);
}

nb::object without_gradient(const char* name, nb::handle tensor) {
  const Torch* library = torch();
  if (library == nullptr || !is_instance(tensor, library->tensor_type)) {
    raise(PyExc_TypeError, std::string(name) + ": found " + nb::type_name(tensor.type()).c_str() +
                               ", expected a torch.Tensor");
  }
  if (!nb::cast<bool>(tensor.attr(library->requires_grad))) return nb::borrow(tensor);
  if (nb::cast<bool>(nb::module_::import_("torch").attr("is_grad_enabled")())) {
    raise(PyExc_NotImplementedError, std::string(name) +
                                         ": found a tensor that needs a gradient, expected none: "
                                         "call the model under torch.no_grad()");
  }
  return tensor.attr("detach")();
}

GivenRows::GivenRows(const char* name, const char* caller, nb::handle tensor) {
  const std::optional<TensorView> plain = plain_tensor(tensor);
  if (plain.has_value() && is_floating(plain->dtype)) {
    view_ = *plain;
    return;
  }
  array_ = std::make_unique<Array>(name, without_gradient(caller, tensor));
  view_ = array_->view(name);
}

HfAttend::HfAttend(GivenRows given, const AttentionOptions& chosen,
                   const std::int32_t* first_visible)
    : query(given.view()), options(chosen), rows_(std::move(given)), first_visible_(first_visible) {
  if (query.rank != 4) {
    check(wrong_tensor("query", query, "[batch, num_heads, length, head_dim]"));
  }
}

HfAttend::HfAttend(nb::handle query_in, float scale, bool causal, float softcap,
                   std::int32_t window, std::int32_t chunk, nb::handle first_visible,
                   nb::handle mask, nb::handle sinks, nb::handle lse)
    : HfAttend(GivenRows("query", "query", query_in), {}, nullptr) {
  options.scale = scale;
  options.causal = causal;
  options.softcap = softcap;
  options.window = window;
  options.chunk = chunk;
  arrays_ = std::make_unique<Arrays>();
  arrays_->first_visible = list_of("first_visible", first_visible, Element::kI32, query.shape[0]);
  if (arrays_->first_visible.defined()) {
    first_visible_ = static_cast<const std::int32_t*>(arrays_->first_visible.raw().data);
  }
  arrays_->sinks = list_of("sinks", sinks, Element::kF32, query.shape[1]);
  if (arrays_->sinks.defined()) {
    options.sinks = static_cast<const float*>(arrays_->sinks.raw().data);
  }
  if (!mask.is_none()) {
    arrays_->mask = Array("mask", mask);
    options.mask = arrays_->mask.view("mask");
  }
  if (!lse.is_none()) {
    arrays_->lse = Array("lse", lse);
    lse_ = arrays_->lse.writable("lse");
  }
}

nb::object HfAttend::new_out(std::int64_t v_head_dim) {
  const std::int64_t shape[] = {query.shape[0], query.shape[2], query.shape[1], v_head_dim};
  nb::object made = new_tensor(query.dtype, shape, 4, &out_);
  std::swap(out_.shape[1], out_.shape[2]);
  std::swap(out_.strides[1], out_.strides[2]);
  return made;
}

Status HfAttend::run(const KvView& kv, std::int64_t elements) const {
  if (kv.num_seqs != query.shape[0]) {
    return wrong_tensor("query", query,
                        "a batch of " + std::to_string(kv.num_seqs) + ", that of the keys");
  }
  const std::int64_t length = query.shape[2];
  if (length * kv.num_seqs > std::numeric_limits<std::int32_t>::max()) {
    return wrong_tensor("query", query, "fewer than 2^31 queries");
  }
  // A second part is the plain tail of coded rows, whose own first rows may be hidden.
  KvPart parts[2];
  if (kv.num_parts > 2) return Status(StatusCode::kUnsupported, "kv.num_parts: found more than 2");
  std::copy_n(kv.parts, kv.num_parts, parts);
  KvView view = kv;
  view.parts = parts;
  thread_local std::vector<std::int32_t> first_visible, for_codes;
  if (first_visible_ != nullptr) {
    const std::int32_t* const first = first_visible_;
    parts[0].first_visible = first;
    if (kv.num_parts == 2) {
      first_visible.assign(first, first + kv.num_seqs);
      for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
        std::int32_t& hidden = first_visible[static_cast<std::size_t>(seq)];
        hidden = std::max({hidden - parts[1].first_position[seq], parts[1].first_visible[seq], 0});
        hidden = std::min(hidden, parts[1].lengths[seq]);
      }
      for_codes.assign(first, first + kv.num_seqs);
      for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
        for_codes[static_cast<std::size_t>(seq)] = std::min(first[seq], parts[0].lengths[seq]);
      }
      parts[0].first_visible = for_codes.data();
      parts[1].first_visible = first_visible.data();
    }
  }
  if (options.mask.defined() && kv.num_parts == 2) {
    // Masks count rows of the tail that do not exist: there are some behind a return to coded rows.
    for (std::int32_t seq = 0; seq < kv.num_seqs; ++seq) {
      if (kv.parts[1].first_visible[seq] == 0) continue;
      return Status(StatusCode::kUnsupported, "mask: found rows that were cropped to coded ones");
    }
  }
  thread_local std::vector<std::int32_t> qo_indptr;
  thread_local AttentionPlan kept;
  AttentionPlan once;
  AttentionPlan& plan = partial_floats(view, query) <= kKept ? kept : once;
  qo_indptr.resize(static_cast<std::size_t>(kv.num_seqs) + 1);
  for (std::int64_t seq = 0; seq <= kv.num_seqs; ++seq) {
    qo_indptr[static_cast<std::size_t>(seq)] = static_cast<std::int32_t>(seq * length);
  }
  ExecContext context;
  context.executor = times(elements, length) < kShared ? &serial_executor() : &torch_threads();
  // The layers of a forward pass that are alike take the plan of the first.
  if (!plan.fits(view, qo_indptr, query.shape[1], options, context)) {
    KVC_RETURN_IF_ERROR(plan.plan(view, qo_indptr, query.shape[1], options, context));
  }
  return plan.run(query, view, out_, lse_, options, context);
}

LikeTensor hf_attend(GivenTensor query, GivenArray key, GivenArray value, float scale, bool causal,
                     float softcap, std::int32_t window, std::int32_t chunk,
                     GivenArray first_visible, GivenArray mask, GivenArray sinks, GivenArray lse) {
  HfAttend call(query, scale, causal, softcap, window, chunk, first_visible, mask, sinks, lse);
  const PyKvView rows = view_of_arrays(key, value, Layout::kHND);
  nb::object out = call.new_out(rows.view.get().v_head_dim);
  const std::int64_t elements = rows.elements();
  Status status;
  {
    const Unlocked unlocked(times(elements, call.query.shape[2]));
    status = call.run(rows.view.get(), elements);
  }
  check(status);
  return out;
}

}  // namespace kvcache::python
