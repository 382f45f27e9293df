// capabilities.json as a program reads it: what there is of everything, and what may come of each
// operation on each face. The tests of Python read the same file, and docs/capabilities.md is made
// of it.
#ifndef KVCACHE_TESTS_MATRIX_LIST_H_
#define KVCACHE_TESTS_MATRIX_LIST_H_

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kvcache/layer_spec.h"
#include "kvcache/row_format.h"
#include "kvcache/status.h"
#include "kvcache/types.h"
#include "support/paths.h"

namespace kvcache::testing {

using Outcomes = std::set<std::string>;  // "passes", "no call", or the name of a refusal

// How rows are stored. An element that comes back is within `error`, of the largest of its row, of
// what was given; that of a coded row, of what its codes stand for.
struct Form {
  const char* name;
  RowFormat keys, values;
  double error;
  std::int64_t residual_tokens = 0;  // newest ones that stay plain

  bool is_coded() const { return keys.is_coded() || values.is_coded(); }
};

// Rows that stay plain are turned with the codes beside them, and back.
inline constexpr double kTurned = 1e-6;

// The list to which a new form of rows is added, here and in capabilities.json.
inline const std::vector<Form>& forms() {
  const auto both = [](const char* name, const RowFormat& format, double error) {
    return Form{name, format, format, error};
  };
  static const std::vector<Form> list = {
      both("f32", plain(DType::kF32), 0),
      both("f16", plain(DType::kF16), 0x1p-11),
      both("bf16", plain(DType::kBF16), 0x1p-8),
      both("int8", coded(RowFormat::kInt8), 0),
      both("fp8_e4m3", coded(RowFormat::kFp8E4M3), 0),
      both("int4", coded(RowFormat::kInt4), 0),
      both("lm4", coded(RowFormat::kLm4), 0),
      both("q8_0", coded(RowFormat::kQ8_0), 0),
      both("q4_0", coded(RowFormat::kQ4_0, true), 0),
      {"k=int8,v=lm4", coded(RowFormat::kInt8), coded(RowFormat::kLm4), 0},
      {"v=int4", plain(DType::kF32), coded(RowFormat::kInt4), 0},
      {"int8, 3 plain", coded(RowFormat::kInt8), coded(RowFormat::kInt8), kTurned, 3},
      {"k=int8,v=lm4, 5 plain", coded(RowFormat::kInt8), coded(RowFormat::kLm4), kTurned, 5},
  };
  return list;
}

struct Kind {
  std::string name;
  Life life;
};

class CapabilityList {
 public:
  CapabilityList() {
    std::ifstream file(source_dir() + "/tests/matrix/capabilities.json");
    json_ = nlohmann::json::parse(file);
    for (const auto& kind : json_["kinds"]) {
      Life life;
      life.window = kind.value("window", 0);
      life.chunk = kind.value("chunk", 0);
      life.sink_tokens = kind.value("sink_tokens", 0);
      kinds_.push_back({kind["name"], life});
    }
    for (const auto& refusal : json_["refusals"]) {
      refusals_.push_back({refusal["name"], refusal["codes"], {}});
      for (const std::string pattern : refusal["patterns"]) {
        refusals_.back().patterns.emplace_back(pattern);
      }
    }
    for (const std::string& operation : operations()) {
      for (const std::string& face : names("faces")) {
        for (const Kind& kind : kinds_) {
          expected_[{operation, face, kind.name}] = read_cell(operation, face, kind.name);
        }
      }
    }
  }

  const std::vector<Kind>& kinds() const { return kinds_; }
  std::vector<std::int64_t> page_sizes() const { return json_["page_sizes"]; }
  std::vector<std::int64_t> rewind_tokens() const { return json_["rewind_tokens"]; }
  std::vector<std::string> layouts() const { return json_["layouts"]; }
  std::vector<std::string> form_names() const { return names("forms"); }
  std::int64_t head_multiple(const std::string& form) const {
    return find("forms", form)["head_multiple"];
  }
  // Whether a face has a way to ask for rows of a form.
  bool holds(const std::string& face, const Form& form) const {
    return form.residual_tokens == 0 || find("faces", face).value("tails", true);
  }
  std::vector<std::string> operations() const { return names("operations"); }

  // What may come of an operation on a face, where its layers are of these kinds and that form.
  Outcomes expected(const std::string& operation, const std::string& face, const Kind& a,
                    const Kind& b, const Form& form) const {
    if (form.residual_tokens > 0 && !(a.life == Life() && b.life == Life())) {
      return {"tails of windows"};
    }
    Outcomes outcomes;
    for (const Kind& kind : {a, b}) {
      const auto known = expected_.find({operation, face, kind.name});
      outcomes.merge(known != expected_.end() ? Outcomes(known->second)
                                              : read_cell(operation, face, kind.name));
    }
    for (const auto& refusal : json_["refusals"]) {
      const std::string name = refusal["name"];
      if (!refusal.value("tails", false) || outcomes.count(name) == 0) continue;
      if (form.residual_tokens > 0) return {name};
      outcomes.erase(name);
    }
    return outcomes;
  }

  // "passes", the name of the one refusal that this is, or the error itself where it is none.
  std::string outcome_of(const Status& status) const {
    if (status.ok()) return "passes";
    if (status.message() == kNoCall) return "no call";
    for (const Refusal& refusal : refusals_) {
      const auto& codes = refusal.codes;
      if (std::find(codes.begin(), codes.end(), code_name(status.code())) == codes.end()) continue;
      for (const std::regex& pattern : refusal.patterns) {
        if (std::regex_search(status.message(), pattern)) return refusal.name;
      }
    }
    return status.to_string();
  }

  static constexpr const char* kNoCall = "no such call";

 private:
  struct Refusal {
    std::string name;
    std::vector<std::string> codes;
    std::vector<std::regex> patterns;
  };

  Outcomes read_cell(const std::string& operation, const std::string& face,
                     const std::string& kind) const {
    const nlohmann::json& cell = find("operations", operation)["cells"][face];
    Outcomes outcomes;
    if (cell.is_string()) {
      outcomes.insert(cell.get<std::string>());
    } else {
      for (const auto& outcome : cell) outcomes.insert(outcome.get<std::string>());
    }
    for (const auto& refusal : json_["refusals"]) {
      if (!refusal.contains("kinds")) continue;
      const std::vector<std::string> kinds = refusal["kinds"];
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) {
        outcomes.erase(refusal["name"].get<std::string>());
      }
    }
    return outcomes;
  }

  static std::string code_name(StatusCode code) {
    switch (code) {
      case StatusCode::kInvalidArgument:
        return "kInvalidArgument";
      case StatusCode::kOutOfRange:
        return "kOutOfRange";
      case StatusCode::kUnsupported:
        return "kUnsupported";
      default:
        return "another";
    }
  }
  std::vector<std::string> names(const char* list) const {
    std::vector<std::string> result;
    for (const auto& entry : json_[list]) result.push_back(entry["name"]);
    return result;
  }
  const nlohmann::json& find(const char* list, const std::string& name) const {
    for (const auto& entry : json_[list]) {
      if (entry["name"] == name) return entry;
    }
    throw std::out_of_range(std::string(list) + ": no " + name);
  }

  nlohmann::json json_;
  std::vector<Kind> kinds_;
  std::vector<Refusal> refusals_;
  std::map<std::tuple<std::string, std::string, std::string>, Outcomes> expected_;
};

inline Status no_call() { return {StatusCode::kUnavailable, CapabilityList::kNoCall}; }

}  // namespace kvcache::testing

#endif  // KVCACHE_TESTS_MATRIX_LIST_H_
