// Random histories of the functional cache agree with a model in which every state owns its rows.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "kvcache/functional.h"
#include "support/layered.h"
#include "support/refusing_memory.h"
#include "support/tensors.h"

namespace kvcache::testing {
namespace {

namespace fn = functional;

using FunctionalOp = std::array<std::uint32_t, 3>;

constexpr std::int64_t kLayers = 2;
constexpr std::int64_t kCapacity = 10;

// A state, its rows by layer, and the views it was given: they hold while its history lives.
struct Known {
  fn::CacheState state;
  std::array<Floats, kLayers> rows;
  std::array<KeyValueView, kLayers> views;
};

bool agrees(const Known& known) {
  std::int64_t longest = 0;
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    const Floats& rows = known.rows[static_cast<std::size_t>(layer)];
    const KeyValueView got = fn::get(known.state, layer).value();
    const KeyValueView& view = known.views[static_cast<std::size_t>(layer)];
    longest = std::max(longest, static_cast<std::int64_t>(rows.size()));
    if (values(got.key) != rows || values(got.value) != rows) return false;
    if (view.key.defined() && (values(view.key) != rows || values(view.value) != rows)) {
      return false;
    }
    if (fn::seq_length(known.state, layer).value() != static_cast<std::int64_t>(rows.size())) {
      return false;
    }
  }
  return known.state.position() == longest;
}

std::string run(const std::vector<FunctionalOp>& ops, DType dtype, Layout layout) {
  RefusingMemory memory;
  fn::InitOptions options;
  options.num_layers = kLayers;
  options.max_seq_len = kCapacity;
  options.dtype = dtype;
  options.layout = layout;
  options.memory = &memory;
  std::vector<Known> states = {{fn::init(options).value(), {}, {}}};
  double next = 1;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const FunctionalOp& op = ops[i];
    const std::string where = "operation " + std::to_string(i) + ": ";
    const std::size_t which = op[1] % states.size();
    const Known from = states[which];
    switch (op[0] % 8) {
      case 0:  // forget a state
        if (states.size() > 1) states.erase(states.begin() + static_cast<long>(which));
        break;
      case 1:  // an empty one
        states.push_back({fn::reset(from.state).value(), {}, {}});
        break;
      default: {
        const std::int64_t layer = op[2] % kLayers;
        const std::size_t at = static_cast<std::size_t>(layer);
        std::vector<double> tokens;
        for (std::uint32_t t = 0; t < op[2] / 4 % 4; ++t) {
          tokens.push_back(next);
          next = next < 200 ? next + 1 : 1;  // exact in every type
        }
        const HostTensor rows_in = T(tokens, DType::kF32, layout);
        const bool fits =
            static_cast<std::int64_t>(from.rows[at].size() + tokens.size()) <= kCapacity;
        memory.refuse(op[2] / 64 % 5 == 0 ? 1 + op[2] / 512 % 2 : 0, true);
        const Result<fn::Updated> updated = fn::update(from.state, layer, rows_in, rows_in);
        const bool refused = memory.refused();
        memory.refuse(0);
        const StatusCode code = updated.status().code();
        if (!fits && code != StatusCode::kOutOfRange) return where + "past the capacity";
        if (fits && code != StatusCode::kOk && !(refused && code == StatusCode::kOutOfMemory)) {
          return where + updated.status().to_string();
        }
        if (!updated.ok()) break;
        Known to = from;
        to.state = updated->state;
        for (const double token : tokens) to.rows[at].push_back(static_cast<float>(token));
        to.views = {};
        to.views[at] = updated->rows;
        states.push_back(to);
        if (states.size() > 12) states.erase(states.begin());
      }
    }
    for (const Known& known : states) {
      if (!agrees(known)) return where + "a state differs";
    }
  }
  states.clear();
  return memory.regions() == 0 ? "" : "memory was not released";
}

RC_GTEST_PROP(FunctionalModel, AnyHistoryAgrees,
              (const std::vector<FunctionalOp>& ops, std::uint8_t which)) {
  const std::string wrong =
      run(ops, static_cast<DType>(which % 3), which / 4 % 2 == 0 ? Layout::kHND : Layout::kNHD);
  if (!wrong.empty()) RC_FAIL(wrong);
}

}  // namespace
}  // namespace kvcache::testing
