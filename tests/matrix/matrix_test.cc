// The composability matrix: every operation on every face, over layouts, forms, page sizes, kinds
// of layers and mixtures of two of them, passes against the naive model or is refused for a reason
// of a closed list (capabilities.json, of which docs/capabilities.md is made).
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cctype>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "matrix/c_face.h"
#include "matrix/dynamic_cache_face.h"
#include "matrix/operations.h"
#include "matrix/paged_batch_face.h"
#include "matrix/paged_cache_face.h"
#include "matrix/world.h"
#include "support/slow.h"
#include "support/soak.h"

namespace kvcache::testing {
namespace {

constexpr std::int64_t kHeads = 2, kKeyDim = 32, kValueDim = 64, kOddDim = 24;

struct FaceEntry {
  const char* name;
  MakeFace make;
};

const std::vector<FaceEntry>& faces() {
  static const std::vector<FaceEntry> list = {{"DynamicCache", &DynamicCacheFace::make},
                                              {"PagedCache", &PagedCacheFace::make},
                                              {"PagedBatch", &PagedBatchFace::make},
                                              {"C", &CFace::make}};
  return list;
}

const CapabilityList& list() {
  static const CapabilityList read;
  return read;
}

struct Case {
  Layout layout = Layout::kHND;
  Form form = forms().front();
  std::int64_t page_size = 1, rewind_tokens = 0;
  Kind a, b;  // of the two layers

  CacheConfig config() const {
    CacheConfig config;
    for (const Kind& kind : {a, b}) {
      config.layers.push_back(
          LayerSpec::kv(kHeads, kKeyDim, kValueDim, form.keys, form.values).living(kind.life));
    }
    config.page_size = page_size;
    config.num_pages = 1024;
    config.layout = layout;
    config.rewind_tokens = rewind_tokens;
    config.residual_tokens = form.residual_tokens;
    return config;
  }
  std::string name() const {
    return std::string(name_of(layout)) + ", " + form.name + ", pages of " +
           std::to_string(page_size) + ", rewind_tokens " + std::to_string(rewind_tokens) + ", " +
           a.name + " and " + b.name;
  }
};

// Three sequences, of different lengths where they can be, beyond every window.
void fill(World& world) {
  for (int i = 0; i < 3; ++i) world.open();
  world.step(world.face().is_dense() ? Counts{7, 7, 7} : Counts{7, 3, 5});
  for (int i = 0; i < 3; ++i) world.step(each(world, 1));
  if (!world.face().is_dense()) world.step({0, 1, 4});
  world.take_outcomes();
}

void run_case(const FaceEntry& entry, const Case& each_case, const std::string& operation) {
  SCOPED_TRACE(operation + " on " + entry.name + ": " + each_case.name());
  Outcomes expected =
      list().expected(operation, entry.name, each_case.a, each_case.b, each_case.form);
  Outcomes found;
  if (operation == "head size") {
    CacheConfig config = each_case.config();
    for (LayerSpec& spec : config.layers) {
      spec.buffers[0].dim = spec.buffers[1].dim = kOddDim;
    }
    found.insert(list().outcome_of(entry.make(config).status()));
    if (kOddDim % list().head_multiple(each_case.form.name) != 0) {
      expected = {"a form of a head size"};
    }
  } else {
    const CacheConfig config = each_case.config();
    Result<std::unique_ptr<Face>> face = entry.make(config);
    if (face.ok()) {
      World world(list(), std::move(*face), config, each_case.form.error, 1);
      fill(world);
      operation_scripts().at(operation)(world);
      world.check();
      found = world.take_outcomes();
    } else {
      found = {list().outcome_of(face.status())};
    }
  }
  EXPECT_EQ(found, expected);
}

// With every layout, form, page size and pair of kinds, where rows are coded with each layout and
// page size in turn; with each rewind_tokens in turn.
void run_all(const FaceEntry& entry, const std::string& operation) {
  const bool dense = std::string(entry.name) == "DynamicCache";
  const std::vector<std::int64_t> rewinds = list().rewind_tokens();
  std::vector<std::pair<Layout, std::int64_t>> storages;
  for (const Layout layout : {Layout::kHND, Layout::kNHD}) {
    for (const std::int64_t page_size : list().page_sizes()) {
      if (!dense || page_size == 1) storages.push_back({layout, page_size});  // it has no pages
    }
  }
  std::size_t turn = 0;
  for (const Form& form : forms()) {
    if (!list().holds(entry.name, form)) continue;
    for (std::size_t storage = 0; storage < storages.size(); ++storage) {
      std::size_t pair = storage;
      for (const Kind& a : list().kinds()) {
        for (const Kind& b : list().kinds()) {
          const std::int64_t rewind = rewinds[++turn % rewinds.size()];
          if ((form.is_coded() || kSlow) && ++pair % storages.size() != 0) continue;
          const auto& [layout, page_size] = storages[storage];
          run_case(entry, {layout, form, page_size, rewind, a, b}, operation);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
      ++turn;  // so that every pair of kinds has every one of them
    }
  }
}

class Matrix : public ::testing::TestWithParam<std::pair<FaceEntry, std::string>> {};

TEST_P(Matrix, EveryCombinationPassesOrIsRefusedForAReasonOfTheList) {
  run_all(GetParam().first, GetParam().second);
}

std::vector<std::pair<FaceEntry, std::string>> every_cell() {
  std::vector<std::pair<FaceEntry, std::string>> cells;
  for (const FaceEntry& face : faces()) {
    for (const std::string& operation : list().operations()) cells.push_back({face, operation});
  }
  return cells;
}

std::string cell_name(const ::testing::TestParamInfo<std::pair<FaceEntry, std::string>>& info) {
  std::string name = std::string(info.param.first.name) + "_" + info.param.second;
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cells, Matrix, ::testing::ValuesIn(every_cell()), cell_name);

TEST(MatrixList, NamesTheFormsAndLayoutsThatTheseTestsHave) {
  std::vector<std::string> names;
  for (const Form& form : forms()) names.push_back(form.name);
  EXPECT_EQ(list().form_names(), names);
  EXPECT_EQ(list().layouts(), (std::vector<std::string>{"HND", "NHD"}));
}

TEST(MatrixList, HasAScriptForEachOperation) {
  std::vector<std::string> operations = list().operations();
  std::erase(operations, "head size");
  EXPECT_EQ(operations.size(), operation_scripts().size());
  for (const std::string& operation : operations) {
    EXPECT_TRUE(operation_scripts().count(operation) == 1) << operation;
  }
}

TEST(MatrixList, AnErrorOfNoReasonIsNotTakenForOne) {
  EXPECT_EQ(list().outcome_of({}), "passes");
  EXPECT_EQ(list().outcome_of(no_call()), "no call");
  const Status other(StatusCode::kOutOfRange, "layer: found 3, expected 0 .. 2");
  EXPECT_EQ(list().outcome_of(other), other.to_string());
}

// Any operations one after another, until one fails; `done` names them. Returns how many calls they
// were.
std::int64_t run_any(const FaceEntry& entry, const Case& any, const std::vector<std::string>& order,
                     std::uint32_t seed, const ::testing::TestPartResultArray& failures,
                     std::string* done) {
  const CacheConfig config = any.config();
  World world(list(), entry.make(config).value(), config, any.form.error, seed);
  fill(world);
  for (const std::string& operation : order) {
    *done += " " + operation + ";";
    while (world.num_seqs() > 5) world.release(0);
    world.take_outcomes();
    operation_scripts().at(operation)(world);
    world.check();
    Outcomes allowed = list().expected(operation, entry.name, any.a, any.b, any.form);
    allowed.insert("passes");
    for (const std::string& outcome : world.take_outcomes()) {
      EXPECT_EQ(allowed.count(outcome), 1u) << outcome;
    }
    if (failures.size() > 0) break;
  }
  return world.operations();
}

// Windows, chunks, sinks, page sizes and rewind_tokens of any size.
TEST(MatrixSoak, AnyOperationsInAnyOrderAgreeWithTheModel) {
  soak("MatrixSoak", [] {
    const auto any_kind = [] {
      const Life life = any_life();
      const char* const name = life.chunk > 0         ? "chunk"
                               : life.sink_tokens > 0 ? "window and sinks"
                               : life.window > 0      ? "window"
                                                      : "full";
      return Kind{name, life};
    };
    Case any;
    any.layout = *rc::gen::element(Layout::kHND, Layout::kNHD);
    any.page_size = *rc::gen::inRange<std::int64_t>(1, 9);
    any.rewind_tokens = *rc::gen::inRange<std::int64_t>(0, 6);
    const FaceEntry& entry = *rc::gen::elementOf(faces());
    any.form = *rc::gen::suchThat(rc::gen::elementOf(forms()),
                                  [&](const Form& form) { return list().holds(entry.name, form); });
    any.a = any.form.residual_tokens > 0 ? list().kinds().front() : any_kind();
    any.b = any.form.residual_tokens > 0 ? list().kinds().front() : any_kind();
    std::vector<std::string> names;
    for (const auto& [name, script] : operation_scripts()) names.push_back(name);
    const auto order = *rc::gen::container<std::vector<std::string>>(rc::gen::elementOf(names));
    const auto seed = *rc::gen::arbitrary<std::uint32_t>();
    ::testing::TestPartResultArray failures;
    std::string done;
    std::int64_t operations = 0;
    {
      const ::testing::ScopedFakeTestPartResultReporter reporter(
          ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
      operations = run_any(entry, any, order, seed, failures, &done);
    }
    if (failures.size() > 0) {
      RC_FAIL(std::string(entry.name) + ", " + any.name() + ":" + done + "\n" +
              failures.GetTestPartResult(0).message());
    }
    return operations;
  });
}

}  // namespace
}  // namespace kvcache::testing
