// PrefixCache through the C door: what the C++ class does, and bad input refused.
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache_c.h"
#include "support/temp_dir.h"

namespace kvcache {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens counted(std::int32_t count, std::int32_t begin = 1) {
  Tokens tokens;
  for (std::int32_t i = 0; i < count; ++i) tokens.push_back(begin + i);
  return tokens;
}

kvc_prefix_namespace named(std::uint8_t bits, std::int64_t tenant = 0) {
  kvc_prefix_namespace space = {};
  space.struct_size = sizeof(space);
  space.bits[0] = bits;
  space.tenant = tenant;
  return space;
}

class CPrefix : public ::testing::Test {
 protected:
  void SetUp() override {
    kvc_layer_spec layer = {};
    layer.struct_size = sizeof(layer);
    layer.num_kv_heads = layer.k_head_dim = layer.v_head_dim = 1;
    kvc_paged_config config = {};
    config.struct_size = sizeof(config);
    config.layers = &layer;
    config.num_layers = 1;
    config.page_size = 4;
    config.num_pages = 16;
    config.prefixes = 1;
    ASSERT_EQ(kvc_paged_create(&config, &cache_), KVC_OK) << kvc_last_message();
    kvc_prefix_options options = {sizeof(options), KVC_LRU, 0, 4};
    ASSERT_EQ(kvc_prefix_create(cache_, &options, &prefix_), KVC_OK) << kvc_last_message();
  }
  ~CPrefix() override {
    kvc_prefix_free(prefix_);
    kvc_paged_free(cache_);
  }

  // match, open, append the rest, release: the tokens found.
  std::int64_t ask(const Tokens& text, const kvc_prefix_namespace* space = nullptr) {
    kvc_prefix_handle* handle = nullptr;
    const auto count = static_cast<std::int64_t>(text.size());
    EXPECT_EQ(kvc_prefix_match(prefix_, text.data(), count, space, &handle), KVC_OK);
    const std::int64_t found = kvc_prefix_handle_length(handle);
    std::int64_t seq = -1;
    EXPECT_EQ(kvc_prefix_open(prefix_, handle, &seq), KVC_OK) << kvc_last_message();
    kvc_prefix_handle_free(handle);
    append(seq, text, found);
    EXPECT_EQ(kvc_paged_release(cache_, seq), KVC_OK);
    return found;
  }

  void append(std::int64_t seq, const Tokens& text, std::int64_t begin) {
    const auto count = static_cast<std::int64_t>(text.size()) - begin;
    kvc_append append = {sizeof(append), seq, count, text.data() + begin};
    kvc_step* step = nullptr;
    ASSERT_EQ(kvc_paged_reserve(cache_, &append, 1, &step), KVC_OK) << kvc_last_message();
    std::vector<float> rows(static_cast<std::size_t>(count), 1.0f);
    kvc_tensor tensor = {};
    tensor.struct_size = sizeof(tensor);
    tensor.rank = 3;
    tensor.data = rows.data();
    tensor.shape[0] = count;
    tensor.shape[1] = tensor.shape[2] = 1;
    EXPECT_EQ(kvc_paged_write(cache_, step, 0, &tensor, &tensor, nullptr), KVC_OK)
        << kvc_last_message();
    EXPECT_EQ(kvc_paged_commit(cache_, step, nullptr, 0), KVC_OK);
    kvc_step_free(step);
  }

  kvc_prefix_stats stats() const {
    kvc_prefix_stats found = {};
    found.struct_size = sizeof(found);
    EXPECT_EQ(kvc_prefix_get_stats(prefix_, &found), KVC_OK);
    return found;
  }

  kvc_paged* cache_ = nullptr;
  kvc_prefix* prefix_ = nullptr;
};

TEST_F(CPrefix, FindsToTheTokenInItsNamespaceAndCounts) {
  EXPECT_EQ(ask(counted(10)), 0);
  EXPECT_EQ(ask(counted(10)), 9);
  EXPECT_EQ(ask(counted(6)), 5);
  const kvc_prefix_namespace other = named(1), tenant = named(0, 7);
  EXPECT_EQ(ask(counted(10), &other), 0);
  EXPECT_EQ(ask(counted(10), &tenant), 0);
  EXPECT_EQ(ask(counted(10), &other), 9);
  const kvc_prefix_stats found = stats();
  EXPECT_EQ(found.matches, 6);
  EXPECT_EQ(found.hits, 3);
  EXPECT_EQ(found.tokens_reused, 9 + 5 + 9);
  EXPECT_EQ(found.misses[KVC_MISS_LAST_TOKEN], 3);
  EXPECT_EQ(found.misses[KVC_MISS_OTHER_NAMESPACE], 2);
  EXPECT_EQ(found.namespaces, 3);
  EXPECT_EQ(found.pages, found.pages_unheld);
  kvc_paged_stats paged = {};
  paged.struct_size = sizeof(paged);
  EXPECT_EQ(kvc_paged_get_stats(cache_, &paged), KVC_OK);
  EXPECT_EQ(paged.pages_cached, found.pages);
  EXPECT_EQ(paged.pages_held, 0);
}

TEST_F(CPrefix, HandlesAndPinsHoldPagesAndExplainHoldsNone) {
  ask(counted(8));
  kvc_prefix_handle* handle = nullptr;
  const Tokens text = counted(9);
  ASSERT_EQ(kvc_prefix_match(prefix_, text.data(), 9, nullptr, &handle), KVC_OK);
  EXPECT_EQ(kvc_prefix_handle_reason(handle), KVC_MISS_LAST_TOKEN);
  EXPECT_EQ(kvc_prefix_evict(prefix_, 100), 0);
  EXPECT_EQ(kvc_prefix_pin(prefix_, handle), KVC_OK);
  kvc_prefix_handle_free(handle);
  EXPECT_EQ(kvc_prefix_evict(prefix_, 100), 0);
  ASSERT_EQ(kvc_prefix_match(prefix_, text.data(), 9, nullptr, &handle), KVC_OK);
  EXPECT_EQ(kvc_prefix_unpin(prefix_, handle), KVC_OK);
  EXPECT_EQ(kvc_prefix_unpin(prefix_, handle), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_prefix_set_priority(prefix_, handle, 101), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_set_priority(prefix_, handle, 80), KVC_OK);
  EXPECT_EQ(kvc_prefix_set_ttl(prefix_, handle, -1), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_set_ttl(prefix_, handle, 1'000'000), KVC_OK);
  EXPECT_EQ(kvc_prefix_remove_expired(prefix_), 0);
  kvc_prefix_handle_free(handle);
  kvc_prefix_explanation said = {};
  said.struct_size = sizeof(said);
  EXPECT_EQ(kvc_prefix_explain(prefix_, text.data(), 9, nullptr, &said), KVC_OK);
  EXPECT_EQ(said.length, 8);
  EXPECT_EQ(said.stored, 8);
  EXPECT_EQ(said.layer, -1);
  EXPECT_EQ(kvc_prefix_evict(prefix_, 100), 2);
  EXPECT_EQ(kvc_prefix_explain(prefix_, text.data(), 9, nullptr, &said), KVC_OK);
  EXPECT_EQ(said.reason, KVC_MISS_EVICTED);
}

TEST_F(CPrefix, ATenantHasItsQuota) {
  const kvc_prefix_namespace mine = named(0, 1), others = named(0, 2);
  ask(counted(8), &mine);
  const std::int64_t page = stats().bytes / stats().pages;
  EXPECT_EQ(kvc_prefix_set_quota(prefix_, 1, 2 * page), KVC_OK);
  EXPECT_EQ(kvc_prefix_tenant_bytes(prefix_, 1), 2 * page);
  for (std::int32_t i = 1; i < 9; ++i) ask(counted(12, 100 * i), &others);
  EXPECT_EQ(ask(counted(8), &mine), 7);
  EXPECT_EQ(kvc_prefix_set_quota(prefix_, 1, -2), KVC_INVALID_ARGUMENT);
}

TEST_F(CPrefix, EventsAreTakenInOrderAndABadSizeLosesNone) {
  ask(counted(8));
  kvc_prefix_event events[8] = {};
  std::int64_t taken = -1;
  EXPECT_EQ(kvc_prefix_take_events(prefix_, events, 8, &taken), KVC_INVALID_ARGUMENT);
  for (kvc_prefix_event& event : events) event.struct_size = sizeof(event);
  EXPECT_EQ(kvc_prefix_take_events(prefix_, events, 8, &taken), KVC_OK) << kvc_last_message();
  ASSERT_EQ(taken, 2);
  EXPECT_EQ(events[0].kind, 0);
  EXPECT_EQ(events[1].number, 2);
  EXPECT_EQ(events[1].parent, events[0].key);
  EXPECT_EQ(kvc_prefix_take_events(prefix_, nullptr, 0, &taken), KVC_OK);
  EXPECT_EQ(taken, 0);
}

TEST_F(CPrefix, ARowOfABatchBecomesWhatWasFound) {
  ask(counted(8));
  kvc_batch* batch = nullptr;
  ASSERT_EQ(kvc_batch_create(cache_, 1, &batch), KVC_OK);
  kvc_prefix_handle* handle = nullptr;
  const Tokens text = counted(7);
  ASSERT_EQ(kvc_prefix_match(prefix_, text.data(), 7, nullptr, &handle), KVC_OK);
  std::int64_t seq = -1;
  ASSERT_EQ(kvc_prefix_open(prefix_, handle, &seq), KVC_OK);
  kvc_prefix_handle_free(handle);
  EXPECT_EQ(kvc_batch_replace(batch, 1, seq), KVC_OUT_OF_RANGE);
  EXPECT_EQ(kvc_batch_replace(batch, 0, seq), KVC_OK);
  EXPECT_EQ(kvc_batch_replace(batch, 0, seq), KVC_INVALID_ARGUMENT);
  std::int64_t length = -1;
  EXPECT_EQ(kvc_batch_lengths(batch, 0, &length, 1), KVC_OK);
  EXPECT_EQ(length, 6);
  kvc_batch_free(batch);
}

TEST_F(CPrefix, WhatIsKnownGoesThroughAFile) {
  const test::TempDir folder;
  const std::string path = folder.path() + "/warm.kvc";
  const kvc_prefix_namespace space = named(3);
  EXPECT_EQ(ask(counted(10), &space), 0);
  std::int64_t pages = 0;
  ASSERT_EQ(kvc_prefix_save(prefix_, path.c_str(), 0, &pages), KVC_OK) << kvc_last_message();
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(kvc_prefix_evict(prefix_, 100), 3);
  EXPECT_EQ(ask(counted(10, 50), &space), 0);
  ASSERT_EQ(kvc_prefix_load(prefix_, path.c_str(), nullptr, &pages), KVC_OK) << kvc_last_message();
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(ask(counted(12), &space), 10);
  EXPECT_EQ(kvc_prefix_load(prefix_, (path + "x").c_str(), nullptr, nullptr), KVC_NOT_FOUND);
  EXPECT_EQ(kvc_prefix_load(nullptr, path.c_str(), nullptr, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_save(prefix_, nullptr, 0, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_save(prefix_, path.c_str(), -1, nullptr), KVC_INVALID_ARGUMENT);
}

TEST_F(CPrefix, BadInputIsNamed) {
  kvc_prefix* none = nullptr;
  EXPECT_EQ(kvc_prefix_create(cache_, nullptr, &none), KVC_INVALID_ARGUMENT);  // there is one
  EXPECT_EQ(kvc_prefix_create(nullptr, nullptr, &none), KVC_INVALID_ARGUMENT);
  kvc_prefix_options options = {sizeof(options), 4, 0, 0};
  EXPECT_EQ(kvc_prefix_create(cache_, &options, &none), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(kvc_last_message()), "options.eviction: found 4, expected 0 .. 3");
  EXPECT_EQ(none, nullptr);
  kvc_prefix_handle* handle = nullptr;
  const Tokens text = counted(4);
  EXPECT_EQ(kvc_prefix_match(nullptr, text.data(), 4, nullptr, &handle), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_match(prefix_, nullptr, 4, nullptr, &handle), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_match(prefix_, text.data(), -1, nullptr, &handle), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_match(prefix_, text.data(), 4, nullptr, nullptr), KVC_INVALID_ARGUMENT);
  kvc_prefix_namespace space = named(1);
  space.reserved = 1;
  EXPECT_EQ(kvc_prefix_match(prefix_, text.data(), 4, &space, &handle), KVC_UNSUPPORTED);
  std::int64_t seq = 0;
  EXPECT_EQ(kvc_prefix_open(prefix_, nullptr, &seq), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_get_stats(prefix_, nullptr), KVC_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_prefix_handle_length(nullptr), 0);
  EXPECT_EQ(kvc_prefix_evict(nullptr, 1), 0);
}

TEST_F(CPrefix, AHandleMayBeFreedLastOfAll) {
  ask(counted(8));
  kvc_prefix_handle* handle = nullptr;
  const Tokens text = counted(9);
  ASSERT_EQ(kvc_prefix_match(prefix_, text.data(), 9, nullptr, &handle), KVC_OK);
  kvc_prefix_free(prefix_);
  prefix_ = nullptr;
  kvc_paged_free(cache_);
  cache_ = nullptr;
  EXPECT_EQ(kvc_prefix_handle_length(handle), 8);
  kvc_prefix_handle_free(handle);
}

}  // namespace
}  // namespace kvcache
