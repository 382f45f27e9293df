/* The C door: attention over the caller's own rows, then a paged cache with a fork. */
#include <stdio.h>

#include "kvcache_c.h"

enum { kHeads = 2, kTokens = 3, kDim = 4 };

static kvc_tensor tensor(void* data, int64_t a, int64_t b, int64_t c) {
  kvc_tensor made = {.struct_size = sizeof(made), .dtype = KVC_F32, .rank = 3, .data = data};
  made.shape[0] = a;
  made.shape[1] = b;
  made.shape[2] = c;
  return made;
}

/* One query over K and V [heads, tokens, dim] that lie in this program's memory. */
static kvc_status own_rows(void) {
  float rows[kHeads * kTokens * kDim], query[kHeads * kDim], out[kHeads * kDim];
  for (int i = 0; i < kHeads * kTokens * kDim; ++i) rows[i] = (float)(i / kDim % kTokens);
  for (int i = 0; i < kHeads * kDim; ++i) query[i] = 0;
  const int32_t length = kTokens, indptr[] = {0, 1};
  const kvc_part part = {.struct_size = sizeof(part),
                         .page_size = kTokens,
                         .k = rows,
                         .v = rows,
                         .k_head_stride = kTokens * kDim,
                         .k_token_stride = kDim,
                         .v_head_stride = kTokens * kDim,
                         .v_token_stride = kDim,
                         .lengths = &length};
  const kvc_view_desc desc = {.struct_size = sizeof(desc),
                              .num_seqs = 1,
                              .num_kv_heads = kHeads,
                              .k_head_dim = kDim,
                              .v_head_dim = kDim,
                              .num_parts = 1,
                              .parts = &part};
  kvc_view* view = NULL;
  kvc_status status = kvc_view_create(&desc, &view);
  if (status != KVC_OK) return status;
  const kvc_tensor q = tensor(query, 1, kHeads, kDim), result = tensor(out, 1, kHeads, kDim);
  status = kvc_attend(&q, indptr, view, &result, NULL, NULL, NULL);
  if (status == KVC_OK) printf("mean of rows 0, 1, 2: %.2f\n", (double)out[0]);
  kvc_view_free(view);
  return status;
}

/* Five tokens in pages of four, and a second text that shares them. */
static kvc_status pages(kvc_paged* cache) {
  float rows[5 * kHeads * kDim] = {0};
  const kvc_tensor five = tensor(rows, 5, kHeads, kDim);
  int64_t text[2];
  kvc_step* step = NULL;
  kvc_status status = kvc_paged_open(cache, &text[0]);
  if (status != KVC_OK) return status;
  const kvc_append append = {.struct_size = sizeof(append), .seq = text[0], .count = 5};
  status = kvc_paged_reserve(cache, &append, 1, &step);
  if (status == KVC_OK) status = kvc_paged_write(cache, step, 0, &five, &five, NULL);
  if (status == KVC_OK) status = kvc_paged_commit(cache, step, NULL, 0);
  kvc_step_free(step); /* an open step rolls back */
  if (status == KVC_OK) status = kvc_paged_fork(cache, text[0], 5, &text[1]);
  if (status != KVC_OK) return status;
  kvc_paged_stats stats = {.struct_size = sizeof(stats)};
  status = kvc_paged_get_stats(cache, &stats);
  if (status != KVC_OK) return status;
  printf("%lld texts of 5 tokens in %lld pages\n", (long long)stats.sequences,
         (long long)stats.pages_held);
  return kvc_paged_rewind(cache, text[0], 9) == KVC_OUT_OF_RANGE ? KVC_OK : KVC_INTERNAL;
}

int main(void) {
  const kvc_layer_spec layer = {
      .struct_size = sizeof(layer), .num_kv_heads = kHeads, .k_head_dim = kDim, .v_head_dim = kDim};
  const kvc_paged_config config = {.struct_size = sizeof(config),
                                   .layers = &layer,
                                   .num_layers = 1,
                                   .page_size = 4,
                                   .num_pages = 8};
  kvc_paged* cache = NULL;
  kvc_status status = own_rows();
  if (status == KVC_OK) status = kvc_paged_create(&config, &cache);
  if (status == KVC_OK) status = pages(cache);
  if (status == KVC_OK) printf("refused as it must be: %s\n", kvc_last_message());
  if (status != KVC_OK) fprintf(stderr, "%s: %s\n", kvc_status_name(status), kvc_last_message());
  kvc_paged_free(cache);
  return status == KVC_OK ? 0 : 1;
}
