// Calls of attention and nothing beside them, for callgrind: bench/instructions.py compiles this
// against the library of a build, of an earlier version too, so it uses what every version has.
//
//   whole_calls BACKEND f32|bf16 ROWS QUERIES CALLS
//
// 8 query heads over 2, of 128 elements; queries in f32.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kvcache/kvcache.h"

namespace {

using kvcache::DType, kvcache::TensorView;

constexpr std::int64_t kHeads = 8, kKvHeads = 2, kDim = 128;

std::vector<float> some_numbers(std::mt19937& rng, std::int64_t count) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (float& x : numbers) x = static_cast<float>(rng() / 2147483648.0 - 1);
  return numbers;
}

// The upper halves of floats.
std::vector<std::uint16_t> as_bf16(const std::vector<float>& numbers) {
  std::vector<std::uint16_t> halves;
  for (const float x : numbers) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    halves.push_back(static_cast<std::uint16_t>(bits >> 16));
  }
  return halves;
}

kvcache::Status run(const std::string& backend, bool bf16, std::int64_t rows, std::int64_t queries,
                    std::int64_t calls) {
  std::mt19937 rng(1);
  const std::vector<float> k = some_numbers(rng, kKvHeads * rows * kDim);
  const std::vector<float> v = some_numbers(rng, kKvHeads * rows * kDim);
  const std::vector<float> q = some_numbers(rng, queries * kHeads * kDim);
  const std::vector<std::uint16_t> k_halves = as_bf16(k), v_halves = as_bf16(v);
  const auto view_of = [&](const std::vector<float>& floats,
                           const std::vector<std::uint16_t>& halves) {
    if (bf16) return TensorView{halves.data(), DType::kBF16, {1, kKvHeads, rows, kDim}};
    return TensorView{floats.data(), DType::kF32, {1, kKvHeads, rows, kDim}};
  };
  KVC_ASSIGN_OR_RETURN(auto cache, kvcache::DynamicCache::create({}));
  const auto layer = cache.layer(0);
  KVC_RETURN_IF_ERROR(layer.update_and_fetch(view_of(k, k_halves), view_of(v, v_halves)).status());
  KVC_ASSIGN_OR_RETURN(const auto view, layer.view());
  std::vector<float> out(q.size());
  kvcache::AttentionOptions options;
  options.backend = backend.c_str();
  kvcache::ExecContext context;
  context.executor = &kvcache::serial_executor();
  const std::int32_t indptr[] = {0, static_cast<std::int32_t>(queries)};
  for (std::int64_t call = 0; call < calls; ++call) {
    KVC_RETURN_IF_ERROR(kvcache::attend({q.data(), DType::kF32, {queries, kHeads, kDim}}, indptr,
                                        view, {out.data(), DType::kF32, {queries, kHeads, kDim}},
                                        {}, options, context));
  }
  double sum = 0;
  for (const float x : out) sum += x;
  std::printf("sum of the results %.9g\n", sum);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "whole_calls BACKEND f32|bf16 ROWS QUERIES CALLS\n");
    return 2;
  }
  const kvcache::Status status = run(argv[1], argv[2] == std::string("bf16"), std::atoll(argv[3]),
                                     std::atoll(argv[4]), std::atoll(argv[5]));
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  return status.ok() ? 0 : 1;
}
