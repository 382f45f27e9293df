#include "attention/backend.h"

#include <string>

#include "attention/cpu/run.h"
#include "attention/reference.h"
#include "base/expect.h"

namespace kvcache::internal {
namespace {

Status absent(const PlanView& plan) {
  return refusal(StatusCode::kUnavailable, "backend", plan.backend->name,
                 std::string("one that runs here (") + plan.backend->availability.reason + ")");
}

constexpr Attention kAbsent = {
    [](const PlanView& plan) -> Result<std::int64_t> { return absent(plan); },
    [](const PlanView& plan, const AttentionProblem&, const ExecContext&) { return absent(plan); }};

}  // namespace

const Attention& attention_of(const Backend& backend) noexcept {
  if (!backend.availability.here) return kAbsent;
  switch (backend.attends) {
    case Attends::kByDefinition:
      return reference_attention();
    case Attends::kByCuts:
      return cpu_attention();
    case Attends::kNowhere:
      break;
  }
  return kAbsent;
}

}  // namespace kvcache::internal
