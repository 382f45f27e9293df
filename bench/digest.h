// One digest a case over a fixed list: what proves that a change moved no bit of any result.
//
// Inputs come from integers, so that two builds on one machine compare bit for bit; digests of two
// machines need not agree, since a backend's last bits are its own.
#ifndef KVCACHE_BENCH_DIGEST_H_
#define KVCACHE_BENCH_DIGEST_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvcache/executor.h"
#include "kvcache/status.h"

namespace kvcache::bench {

struct Digest {
  std::string name;     // what was computed: the same in every storage, so are its bits
  std::string storage;  // the kind of cache it was computed in
  std::string backend;  // empty: none took part
  std::uint64_t bits = 0;
  double error = 0;  // relative root mean square against backend "reference"
  double tolerance = 0;
};

struct DigestOptions {
  std::string model;   // directory of a model whose logits are in the list; empty: none
  std::string filter;  // cases whose names contain it; empty: all
  ExecContext context;
};

// Every backend of the machine over: rows in f32, f16 and bf16 in all storages (digest_store.h);
// decode of 1 .. 8 queries, prefill, and both in one batch; windows, sinks, ALiBi, softcap, masks,
// without causality, partial, reproducible; head sizes and groups; queries and results in 16 bits;
// a model's logits. Errors: what the caches, attention and the model report.
Result<std::vector<Digest>> run_digest(const DigestOptions& options,
                                       const std::function<void(int, int)>& on_progress);

// Errors: kInternal, naming the first case whose error passes its tolerance, or whose bits in two
// storages differ.
Status check_digests(const std::vector<Digest>& digests);

// {"digests": [{"name", "storage", "backend", "bits": 16 hexadecimal digits, "error"}, ...]}.
std::string to_json(const std::vector<Digest>& digests);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_DIGEST_H_
