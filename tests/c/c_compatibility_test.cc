// Hosts that were compiled against version 0.1.0: what they pass is taken as they meant it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "c/door.h"
#include "gtest/gtest.h"
#include "kvcache_c.h"

namespace kvcache {
namespace {

// The structs that have grown since, as they were.
struct OldOptions {
  std::uint32_t struct_size;
  float scale;
  float softcap;
  std::int32_t bidirectional;
  std::int32_t window;
  std::int32_t sink_tokens;
  std::int32_t partial;
  std::int32_t reproducible;
  const float* alibi_slopes;
  const float* sinks;
  const kvc_tensor* mask;
  const char* backend;
};

struct OldConfig {
  std::uint32_t struct_size;
  std::int32_t layout;
  const kvc_layer_spec* layers;
  std::int64_t num_layers;
  std::int64_t page_size;
  std::int64_t num_pages;
  std::int64_t budget_bytes;
};

struct OldLayer {
  std::uint32_t struct_size;
  std::int32_t k_dtype;
  std::int32_t v_dtype;
  std::int64_t num_kv_heads;
  std::int64_t k_head_dim;
  std::int64_t v_head_dim;
};

#define KVC_SAME_PLACE(Old, New, field)                         \
  static_assert(offsetof(Old, field) == offsetof(New, field) && \
                std::is_same_v<decltype(Old::field), decltype(New::field)>)
KVC_SAME_PLACE(OldOptions, kvc_attention_options, scale);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, softcap);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, bidirectional);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, window);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, sink_tokens);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, partial);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, reproducible);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, alibi_slopes);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, sinks);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, mask);
KVC_SAME_PLACE(OldOptions, kvc_attention_options, backend);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, layout);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, layers);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, num_layers);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, page_size);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, num_pages);
KVC_SAME_PLACE(OldConfig, kvc_paged_config, budget_bytes);

// The least sizes are those of 0.1.0, padding included; those that have not grown are frozen too.
using internal::kLeastSize;
static_assert(sizeof(OldOptions) == kLeastSize<kvc_attention_options>);
static_assert(sizeof(OldConfig) == kLeastSize<kvc_paged_config>);
static_assert(sizeof(OldLayer) == kLeastSize<kvc_layer_spec>);
static_assert(sizeof(void*) != 8 || (kLeastSize<kvc_tensor> == 88 && kLeastSize<kvc_part> == 136));
static_assert(sizeof(void*) != 8 ||
              (kLeastSize<kvc_executor> == 24 && kLeastSize<kvc_view_desc> == 32));
static_assert(sizeof(void*) != 8 ||
              (kLeastSize<kvc_layer_spec> == 40 && kLeastSize<kvc_append> == 32));
static_assert(sizeof(void*) != 8 || (sizeof(kvc_part) == 176 && sizeof(kvc_layer_spec) == 80));
static_assert(sizeof(void*) != 8 || kLeastSize<kvc_paged_stats> == 88);
static_assert(sizeof(void*) != 8 || kLeastSize<kvc_memory> == 48);

constexpr std::int64_t kHeads = 2, kDim = 8, kRows = 20;

// A struct right before a page that nobody may touch.
template <typename Struct>
class AtTheEnd {
 public:
  AtTheEnd() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + page_, page_, PROT_NONE);
    get().struct_size = sizeof(Struct);
  }
  AtTheEnd(const AtTheEnd&) = delete;
  ~AtTheEnd() { munmap(memory_, 2 * page_); }

  Struct& get() { return *reinterpret_cast<Struct*>(memory_ + page_ - sizeof(Struct)); }
  template <typename Now>
  Now* as() {
    return reinterpret_cast<Now*>(&get());
  }

 private:
  std::size_t page_;
  std::byte* memory_;
};

class CCompatibility : public ::testing::Test {
 protected:
  CCompatibility() {
    for (std::size_t i = 0; i < rows_.size(); ++i)
      rows_[i] = static_cast<float>(i % 29) / 29 - 0.5f;
    part_.struct_size = sizeof(part_);
    part_.k = part_.v = rows_.data();
    part_.page_size = kRows;
    part_.k_page_stride = part_.v_page_stride = kHeads * kRows * kDim;
    part_.k_head_stride = part_.v_head_stride = kRows * kDim;
    part_.k_token_stride = part_.v_token_stride = kDim;
    part_.lengths = &length_;
    const kvc_view_desc desc = {sizeof(desc), 1, kHeads, kDim, kDim, 1, &part_};
    EXPECT_EQ(kvc_view_create(&desc, &view_), KVC_OK) << kvc_last_message();
  }
  ~CCompatibility() override { kvc_view_free(view_); }

  std::vector<float> attend(const kvc_attention_options* options) {
    std::vector<float> out(kHeads * kDim);
    const auto tensor = [](float* data) {
      return kvc_tensor{sizeof(kvc_tensor), KVC_F32, 4, data, {1, kHeads, 1, kDim}, {}};
    };
    const kvc_tensor q = tensor(rows_.data() + 7), to = tensor(out.data());
    EXPECT_EQ(kvc_attend(&q, nullptr, view_, &to, nullptr, options, nullptr), KVC_OK)
        << kvc_last_message();
    return out;
  }

  std::vector<float> rows_ = std::vector<float>(kHeads * kRows * kDim);
  std::int32_t length_ = kRows;
  kvc_part part_ = {};
  kvc_view* view_ = nullptr;
};

TEST_F(CCompatibility, OptionsOf010AreTakenAsTheyWereMeant) {
  AtTheEnd<OldOptions> old;
  EXPECT_EQ(attend(old.as<kvc_attention_options>()), attend(nullptr));
  old.get().window = 3;
  kvc_attention_options now = {};
  now.struct_size = sizeof(now);
  now.window = 3;
  EXPECT_EQ(attend(old.as<kvc_attention_options>()), attend(&now));
  EXPECT_NE(attend(&now), attend(nullptr));
}

TEST_F(CCompatibility, SizesBetweenVersionsAndContradictionsAreRefused) {
  kvc_attention_options options = {};
  const kvc_tensor q = {sizeof(q), KVC_F32, 4, rows_.data(), {1, kHeads, 1, kDim}, {}};
  const auto code = [&] { return kvc_attend(&q, nullptr, view_, &q, nullptr, &options, nullptr); };
  options.struct_size = sizeof(OldOptions) - 8;
  EXPECT_EQ(code(), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(kvc_last_message()),
            "options.struct_size: found 56, expected 72, or 64 of version 0.1.0");
  options.struct_size = sizeof(options);
  options.chunk = options.window = 1;
  EXPECT_EQ(code(), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(kvc_last_message()),
            "options.chunk: found 1, expected 0 beside options.window 1");
}

// Memory of the host's, with its books.
struct Host {
  std::int64_t limit = 0, committed = 0, regions = 0;
  std::size_t off = 0;  // from an aligned address

  kvc_memory memory() {
    return {sizeof(kvc_memory), 0, this, &reserve, &commit, &decommit, &release};
  }
  static kvc_status reserve(void* self, std::int64_t bytes, void** region) {
    Host& host = *static_cast<Host*>(self);
    void* data = mmap(nullptr, static_cast<std::size_t>(bytes) + host.off, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return KVC_OUT_OF_MEMORY;
    ++host.regions;
    *region = static_cast<std::byte*>(data) + host.off;
    return KVC_OK;
  }
  static kvc_status commit(void* self, void*, std::int64_t bytes) {
    Host& host = *static_cast<Host*>(self);
    if (host.committed + bytes > host.limit) return KVC_OUT_OF_MEMORY;
    host.committed += bytes;
    return KVC_OK;
  }
  static void decommit(void* self, void*, std::int64_t bytes) {
    static_cast<Host*>(self)->committed -= bytes;
  }
  static void release(void* self, void* region, std::int64_t bytes, std::int64_t committed) {
    Host& host = *static_cast<Host*>(self);
    host.committed -= committed;
    --host.regions;
    munmap(static_cast<std::byte*>(region) - host.off, static_cast<std::size_t>(bytes) + host.off);
  }
};

class CMemory : public ::testing::Test {
 protected:
  kvc_status create(kvc_memory* memory, kvc_paged** cache) {
    const kvc_layer_spec layer = {
        sizeof(layer), KVC_F32, KVC_F32, kHeads, kDim, kDim, 0, 0, 0, 0, 0, 0, 0, 0};
    const kvc_paged_config config = {sizeof(config), KVC_HND, &layer, 1, 4, 8, 0,
                                     memory,         0,       0,      0, 0};
    return kvc_paged_create(&config, cache);
  }
};

TEST_F(CMemory, AConfigOf010HasTheSystemsMemory) {
  AtTheEnd<OldLayer> layer;
  layer.get() = {sizeof(OldLayer), KVC_F32, KVC_F32, kHeads, kDim, kDim};
  AtTheEnd<OldConfig> old;
  old.get() = {sizeof(OldConfig), KVC_HND, layer.as<kvc_layer_spec>(), 1, 4, 8, 0};
  kvc_paged* cache = nullptr;
  ASSERT_EQ(kvc_paged_create(old.as<kvc_paged_config>(), &cache), KVC_OK) << kvc_last_message();
  kvc_paged_free(cache);
}

TEST_F(CMemory, PagesAreTheHostsAndMayBeRefused) {
  Host host;
  const std::int64_t tables = 2 * (32 + 4 * 4 + 140);   // see PagedCache::reserved_bytes()
  host.limit = tables + 2 * 4 * kHeads * 2 * kDim * 4;  // two pages of four tokens
  kvc_memory memory = host.memory();
  kvc_paged* cache = nullptr;
  ASSERT_EQ(create(&memory, &cache), KVC_OK) << kvc_last_message();
  memory = {};  // it was copied
  EXPECT_EQ(host.regions, 1);
  EXPECT_EQ(host.committed, 0);
  std::int64_t seq = 0;
  ASSERT_EQ(kvc_paged_open(cache, &seq), KVC_OK);
  kvc_append append = {sizeof(append), seq, 9, nullptr};
  kvc_step* step = nullptr;
  EXPECT_EQ(kvc_paged_reserve(cache, &append, 1, &step), KVC_OUT_OF_MEMORY);
  EXPECT_NE(std::string(kvc_last_message()).find("memory.commit: found no"), std::string::npos);
  append.count = 8;
  ASSERT_EQ(kvc_paged_reserve(cache, &append, 1, &step), KVC_OK) << kvc_last_message();
  EXPECT_EQ(host.committed, host.limit);
  kvc_step_free(step);
  kvc_paged_free(cache);
  EXPECT_EQ(host.regions, 0);
  EXPECT_EQ(host.committed, 0);
}

TEST_F(CMemory, WhatIsNoMemoryIsRefused) {
  Host host;
  kvc_paged* cache = nullptr;
  kvc_memory memory = host.memory();
  memory.commit = nullptr;
  EXPECT_EQ(create(&memory, &cache), KVC_INVALID_ARGUMENT);
  EXPECT_STREQ(kvc_last_message(), "memory.commit: found null, expected one");
  memory = host.memory();
  memory.reserved = 1;
  EXPECT_EQ(create(&memory, &cache), KVC_UNSUPPORTED);
  memory = host.memory();
  host.off = 64;
  EXPECT_EQ(create(&memory, &cache), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(host.regions, 0);
  EXPECT_EQ(cache, nullptr);
}

}  // namespace
}  // namespace kvcache
