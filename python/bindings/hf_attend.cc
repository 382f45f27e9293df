#include "python/bindings/hf_attend.h"

#include <algorithm>
#include <limits>
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

HfAttend::HfAttend(nb::handle query_in, float scale, bool causal, float softcap,
                   std::int32_t window, nb::handle first_visible, nb::handle mask, nb::handle sinks)
    : query_array_("query", without_gradient("query", query_in)) {
  query = query_array_.view("query");
  if (query.rank != 4) {
    check(wrong_tensor("query", query, "[batch, num_heads, length, head_dim]"));
  }
  options.scale = scale;
  options.causal = causal;
  options.softcap = softcap;
  options.window = window;
  first_visible_ = list_of("first_visible", first_visible, Element::kI32, query.shape[0]);
  sinks_ = list_of("sinks", sinks, Element::kF32, query.shape[1]);
  if (sinks_.defined()) options.sinks = static_cast<const float*>(sinks_.raw().data);
  if (!mask.is_none()) {
    mask_ = Array("mask", mask);
    options.mask = mask_.view("mask");
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
  KvPart part = kv.parts[0];
  KvView view = kv;
  view.parts = &part;
  if (first_visible_.defined()) {
    part.first_visible = static_cast<const std::int32_t*>(first_visible_.raw().data);
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
  KVC_RETURN_IF_ERROR(plan.plan(view, qo_indptr, query.shape[1], options, context));
  return plan.run(query, view, out_, {}, options, context);
}

LikeTensor hf_attend(GivenTensor query, GivenArray key, GivenArray value, float scale, bool causal,
                     float softcap, std::int32_t window, GivenArray first_visible, GivenArray mask,
                     GivenArray sinks) {
  HfAttend call(query, scale, causal, softcap, window, first_visible, mask, sinks);
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
