/* kvcache from C, and from every language that can call C.
 *
 * Each call is one of include/kvcache with the same name, rules and errors: see attention.h,
 * kv_view.h and paged_cache.h. What a call returns is a status; KVC_OK is 0. A failing call leaves
 * everything as if it had not been made, and kvc_last_message() says what was found and expected.
 *
 * Structs begin with struct_size, their sizeof where the caller was compiled: they grow at their
 * end alone, and a field that is 0 or null means what its comment says. What a caller of an earlier
 * version does not have is read as 0 and not written; a larger size than this library's is accepted
 * as long as what lies beyond its own is 0. Sizes below those of version 0.1.0 are refused.
 *
 * Handles are opaque; what creates one says what frees it, and freeing null does nothing.
 *
 * Thread safety: distinct handles are independent. On one cache, calls that take it as const may
 * run together; the others are serialised by the caller. A plan is used by one thread at a time.
 */
#ifndef KVCACHE_C_H_
#define KVCACHE_C_H_

#include <stdint.h>

#ifdef __cplusplus
#include "kvcache/version.h"
extern "C" {
#elif !defined(KVC_API)
#ifdef __GNUC__
#define KVC_API __attribute__((visibility("default")))
#else
#define KVC_API
#endif
#endif

/* Status codes: those of kvcache::StatusCode. Added, never renumbered. */
typedef int32_t kvc_status;
enum {
  KVC_OK = 0,
  KVC_INVALID_ARGUMENT = 1,
  KVC_OUT_OF_RANGE = 2,
  KVC_NOT_FOUND = 3,
  KVC_RETRY_LATER = 4,
  KVC_NEVER_FITS = 5,
  KVC_UNSUPPORTED = 6,
  KVC_OUT_OF_MEMORY = 7,
  KVC_CORRUPT = 8,
  KVC_IO = 9,
  KVC_UNAVAILABLE = 10,
  KVC_INTERNAL = 11
};

/* Element types and layouts: those of kvcache::DType and kvcache::Layout. */
enum { KVC_F32 = 0, KVC_F16 = 1, KVC_BF16 = 2, KVC_I32 = 3, KVC_I64 = 4 };
enum { KVC_HND = 0, KVC_NHD = 1 };

/* How rows of a PagedCache are stored: those of kvcache::RowFormat. */
enum {
  KVC_PLAIN = 0,
  KVC_INT8 = 1,
  KVC_FP8_E4M3 = 2,
  KVC_INT4 = 3,
  KVC_LM4 = 4,
  KVC_Q8_0 = 5,
  KVC_Q4_0 = 6
};

KVC_API const char* kvc_version(void);                /* "major.minor.patch" */
KVC_API const char* kvc_status_name(kvc_status code); /* "out of range" */

/* What the last failing call of this thread said, one line; "" before the first. Valid until the
 * next call of this thread fails. */
KVC_API const char* kvc_last_message(void);

/* A strided tensor in the caller's memory. Shape and strides count elements; strides that are all 0
 * mean row-major. Tensors that go in are not written to. Where a tensor is optional, null. */
typedef struct kvc_tensor {
  uint32_t struct_size;
  int32_t dtype;
  int32_t rank; /* 0 .. 4 */
  void* data;
  int64_t shape[4];
  int64_t strides[4];
} kvc_tensor;

/* Where work runs: the host's own threads. parallel_for calls fn(context, task, worker) once for
 * each task of 0 .. num_tasks-1, and returns when all are done; `worker` is 0 .. concurrency-1, and
 * no two tasks run under the same worker at once. Several threads may call it at once. */
typedef void (*kvc_task_fn)(void* context, int64_t task, int32_t worker);
typedef struct kvc_executor {
  uint32_t struct_size;
  int32_t concurrency; /* at least 1 */
  void* self;          /* handed back to parallel_for */
  void (*parallel_for)(void* self, int64_t num_tasks, kvc_task_fn fn, void* context);
} kvc_executor;

/* ---- Views: what attention reads ---- */

typedef struct kvc_view kvc_view;

/* Rows in pages: see KvPart in kv_view.h. Row r of sequence s lies in slot r % page_size of page
 * block_table[s][r / page_size]; head h of it starts at
 *   k + page * k_page_stride + h * k_head_stride + slot * k_token_stride.
 * Contiguous K [num_seqs, num_kv_heads, S, D] is a part without a table whose page_size is S, with
 * strides H * S * D, S * D and D. Strides count elements, lengths tokens. */
typedef struct kvc_part {
  uint32_t struct_size;
  int32_t k_dtype;
  int32_t v_dtype;
  int32_t page_size;
  const void* k;
  const void* v;
  int64_t k_page_stride, k_head_stride, k_token_stride;
  int64_t v_page_stride, v_head_stride, v_token_stride;
  const int32_t* block_table; /* [num_seqs, block_table_stride]; null: sequence s is page s */
  int64_t block_table_stride;
  const int32_t* lengths;        /* [num_seqs] */
  const int32_t* first_position; /* [num_seqs]; null: all 0 */
  const int32_t* first_visible;  /* [num_seqs]; null: all 0 */
  const int32_t* positions;      /* [num_seqs, positions_stride]; null: first_position + row */
  int64_t positions_stride;
  /* Since 0.2.0: pages and rows that are gone, see KvPart. */
  const int32_t* hole_begin; /* [num_seqs] pages; null: no holes */
  const int32_t* hole_pages;
  const int32_t* first_held; /* [num_seqs] rows; null: all 0 */
  int32_t held_window;       /* 0: any */
  int32_t held_sink_tokens;
  int32_t held_chunk; /* 0: any */
  int32_t reserved;   /* 0 */
} kvc_part;

typedef struct kvc_view_desc {
  uint32_t struct_size;
  int32_t num_seqs;
  int32_t num_kv_heads;
  int32_t k_head_dim;
  int32_t v_head_dim;
  int32_t num_parts;
  const kvc_part* parts; /* [num_parts], in key order */
} kvc_view_desc;

/* A view of the caller's rows and tables. It refers to both and copies neither: they must outlive
 * it, and lengths may change between calls. Freed by kvc_view_free. */
KVC_API kvc_status kvc_view_create(const kvc_view_desc* desc, kvc_view** view);
KVC_API void kvc_view_free(kvc_view* view);

/* ---- Attention ---- */

typedef struct kvc_attention_options {
  uint32_t struct_size;
  float scale;           /* 0: 1 / sqrt(k_head_dim) */
  float softcap;         /* 0: none */
  int32_t bidirectional; /* 0: causal, bottom-right */
  int32_t window;        /* 0: none */
  int32_t sink_tokens;
  int32_t partial;           /* 1: the sinks are left to kvc_finish */
  int32_t reproducible;      /* 1: one path for every query count */
  const float* alibi_slopes; /* [num_heads] or null */
  const float* sinks;        /* [num_heads] or null */
  const kvc_tensor* mask;    /* float32 [B or 1, num_heads or 1, L, S_max] or null */
  const char* backend;       /* null: KVCACHE_BACKEND, else the best */
  /* Since 0.2.0. */
  int32_t separate_prefixes; /* 1: sequences that begin with the same pages read them each */
  int32_t chunk;             /* 0: none; goes with neither window nor sink_tokens */
} kvc_attention_options;

/* q [total_q, num_heads, k_head_dim], whose rows of sequence i are qo_indptr[i] .. qo_indptr[i+1]:
 * [num_seqs + 1], starting at 0. out [total_q, num_heads, v_head_dim]; lse [total_q, num_heads]
 * float32 or null. kvc_attend without a qo_indptr takes a dense q [num_seqs, num_heads, L, D].
 * options null: the defaults; executor null: the library's own threads. */
KVC_API kvc_status kvc_attend(const kvc_tensor* q, const int32_t* qo_indptr, const kvc_view* kv,
                              const kvc_tensor* out, const kvc_tensor* lse,
                              const kvc_attention_options* options, const kvc_executor* executor);

/* Plan once a step, run once a layer: AttentionPlan. Running allocates nothing. */
typedef struct kvc_plan kvc_plan;
KVC_API kvc_status kvc_plan_create(kvc_plan** plan);
KVC_API void kvc_plan_free(kvc_plan* plan);
KVC_API kvc_status kvc_plan_prepare(kvc_plan* plan, const kvc_view* like, const int32_t* qo_indptr,
                                    int64_t num_heads, const kvc_attention_options* options,
                                    const kvc_executor* executor);
KVC_API kvc_status kvc_plan_run(kvc_plan* plan, const kvc_tensor* q, const kvc_view* kv,
                                const kvc_tensor* out, const kvc_tensor* lse,
                                const kvc_attention_options* options, const kvc_executor* executor);
KVC_API int64_t kvc_plan_rows_read(const kvc_plan* plan);   /* 0 for null and before a plan */
KVC_API const char* kvc_plan_backend(const kvc_plan* plan); /* "" likewise */

/* Joins attention over two disjoint sets of keys / applies sinks [num_heads] to merged parts. */
KVC_API kvc_status kvc_merge(const kvc_tensor* out_a, const kvc_tensor* lse_a,
                             const kvc_tensor* out_b, const kvc_tensor* lse_b,
                             const kvc_tensor* out, const kvc_tensor* lse);
KVC_API kvc_status kvc_finish(const kvc_tensor* out, const kvc_tensor* lse, const float* sinks,
                              int64_t num_heads);

/* ---- PagedCache ---- */

typedef struct kvc_paged kvc_paged;
typedef struct kvc_step kvc_step;

typedef struct kvc_layer_spec {
  uint32_t struct_size;
  int32_t k_dtype;
  int32_t v_dtype;
  int64_t num_kv_heads;
  int64_t k_head_dim;
  int64_t v_head_dim;
  /* Since 0.2.0: which tokens' rows are kept, see Life. */
  int64_t window; /* 0: all */
  int64_t chunk;  /* 0: none */
  int32_t sink_tokens;
  int32_t reserved; /* 0 */
  /* Since 0.2.0: how rows are stored, KVC_PLAIN (in k_dtype, v_dtype) or coded. */
  int32_t k_form;
  int32_t v_form;
  int32_t k_rotate; /* 0: as the form has it; 1: rotated; -1: not */
  int32_t v_rotate;
} kvc_layer_spec;

/* Where pages live: the host's own memory. The struct is copied; `self` must outlive the caches
 * that use it. Calls for one cache come one at a time; caches on different threads may share one.
 * What reserve and commit return is KVC_OK, or anything else for "no": then nothing has changed,
 * and the call that needed it is KVC_OUT_OF_MEMORY. reserve   address space for `bytes`, aligned to
 * 4096, that reads as zeros; none is counted yet commit    asks, before they are first touched, for
 * `bytes` more of the region to become content decommit  takes back what a commit granted release
 * ends a region of `bytes`, `committed` being what is left of its commits */
typedef struct kvc_memory {
  uint32_t struct_size;
  int32_t reserved; /* 0 */
  void* self;       /* handed back to each of them */
  kvc_status (*reserve)(void* self, int64_t bytes, void** region);
  kvc_status (*commit)(void* self, void* region, int64_t bytes);
  void (*decommit)(void* self, void* region, int64_t bytes);
  void (*release)(void* self, void* region, int64_t bytes, int64_t committed);
} kvc_memory;

typedef struct kvc_paged_config {
  uint32_t struct_size;
  int32_t layout; /* of the tokens within a page */
  const kvc_layer_spec* layers;
  int64_t num_layers;
  int64_t page_size;    /* tokens; 0: 16 */
  int64_t num_pages;    /* in each group at most; 0: as many as budget_bytes allows one */
  int64_t budget_bytes; /* over all groups; 0: as much as num_pages needs */
  /* Since 0.2.0. */
  const kvc_memory* memory; /* null: the system's */
  int64_t rewind_tokens;    /* how far back layers with a window or chunk can be taken */
  int64_t residual_tokens;  /* newest ones that stay plain in coded layers; 0: none */
  int32_t prefixes;         /* 1: room for the index of a kvc_prefix; not beside residual_tokens */
  int32_t reserved_too;     /* 0 */
} kvc_paged_config;

typedef struct kvc_append {
  uint32_t struct_size;
  int64_t seq;
  int64_t count;         /* new tokens */
  const int32_t* tokens; /* [count] their ids, or null */
} kvc_append;

/* Freed by kvc_paged_free. Steps that are open then may only be freed; views end. */
KVC_API kvc_status kvc_paged_create(const kvc_paged_config* config, kvc_paged** cache);
KVC_API void kvc_paged_free(kvc_paged* cache);

/* A new sequence; its pages go back. */
KVC_API kvc_status kvc_paged_open(kvc_paged* cache, int64_t* seq);
KVC_API kvc_status kvc_paged_release(kvc_paged* cache, int64_t seq);

/* reserve -> write each layer -> attend over the step's view -> commit. Only reserve can fail for
 * space (KVC_RETRY_LATER, KVC_NEVER_FITS). kvc_step_free rolls an open step back, and is called for
 * an ended one too. accepted null: all. */
KVC_API kvc_status kvc_paged_reserve(kvc_paged* cache, const kvc_append* appends,
                                     int64_t num_appends, kvc_step** step);
KVC_API kvc_status kvc_paged_write(kvc_paged* cache, kvc_step* step, int64_t layer,
                                   const kvc_tensor* k, const kvc_tensor* v,
                                   const kvc_executor* executor);
KVC_API kvc_status kvc_paged_step_view(const kvc_paged* cache, const kvc_step* step, int64_t layer,
                                       kvc_view** view);
KVC_API kvc_status kvc_paged_commit(kvc_paged* cache, kvc_step* step, const int64_t* accepted,
                                    int64_t num_accepted);
KVC_API kvc_status kvc_paged_rollback(kvc_paged* cache, kvc_step* step);
KVC_API int64_t kvc_step_num_new_tokens(const kvc_step* step); /* 0 for null and an ended one */
KVC_API void kvc_step_free(kvc_step* step);

/* Committed rows. Freed by kvc_view_free, valid until one of the sequences changes. */
KVC_API kvc_status kvc_paged_view(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                                  int64_t num_seqs, kvc_view** view);

KVC_API kvc_status kvc_paged_fork(kvc_paged* cache, int64_t seq, int64_t length, int64_t* forked);
/* KVC_OK if fork and truncate to `length` would find all that they need, else their error. */
KVC_API kvc_status kvc_paged_reaches(const kvc_paged* cache, int64_t seq, int64_t length);
/* hold 1: layers that drop rows hold all that the sequence brings from here on; 0: what they drop
 * goes. */
KVC_API kvc_status kvc_paged_hold_rows(kvc_paged* cache, int64_t seq, int32_t hold);
KVC_API kvc_status kvc_paged_truncate(kvc_paged* cache, int64_t seq, int64_t n);
KVC_API kvc_status kvc_paged_rewind(kvc_paged* cache, int64_t seq, int64_t n);
/* Sequence seqs[i] becomes what seqs[beam_idx[i]] was. */
KVC_API kvc_status kvc_paged_reorder(kvc_paged* cache, const int64_t* seqs, int64_t num_seqs,
                                     const int64_t* beam_idx);

/* A dense copy of the rows that a layer holds of one sequence, kvc_paged_rows_held of them: key and
 * value [H, S, D] for KVC_HND, [S, H, D] for KVC_NHD. */
KVC_API kvc_status kvc_paged_gather(const kvc_paged* cache, int64_t layer, int64_t seq,
                                    const kvc_tensor* key, const kvc_tensor* value,
                                    const kvc_executor* executor);

/* Writes [num_seqs, *max_pages] page ids, -1 for unused, into `pages`, which has room for
 * `capacity` of them. With pages null only *max_pages is written; too little room is
 * KVC_OUT_OF_RANGE. */
KVC_API kvc_status kvc_paged_block_table(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                                         int64_t num_seqs, int32_t* pages, int64_t capacity,
                                         int64_t* max_pages);
/* The slots (page * page_size + offset) of a step's new tokens: kvc_step_num_new_tokens of them. */
KVC_API kvc_status kvc_paged_slot_mapping(const kvc_paged* cache, const kvc_step* step,
                                          int64_t layer, int32_t* slots, int64_t capacity);

/* Committed tokens of each sequence: [num_seqs]. */
KVC_API kvc_status kvc_paged_lengths(const kvc_paged* cache, const int64_t* seqs, int64_t num_seqs,
                                     int64_t* lengths);

/* Of each sequence, the position of the oldest row that a layer holds beside the sinks, and how
 * many rows it holds: [num_seqs]. */
KVC_API kvc_status kvc_paged_first_positions(const kvc_paged* cache, int64_t layer,
                                             const int64_t* seqs, int64_t num_seqs,
                                             int64_t* positions);
KVC_API kvc_status kvc_paged_rows_held(const kvc_paged* cache, int64_t layer, const int64_t* seqs,
                                       int64_t num_seqs, int64_t* rows);

/* Since 0.2.0. The committed rows of a sequence as a file, and a new sequence of what a file has,
 * into a cache of the same layers, whatever its pages and layout: see cache_file.h. The file is the
 * old one or the new one at every moment. name_space: 32 bytes that stand for what decides the rows
 * of a token, or null for zeros; a file of another one is KVC_INVALID_ARGUMENT. KVC_CORRUPT for
 * bytes that are not what was written, KVC_UNSUPPORTED for another version, KVC_NOT_FOUND without a
 * file. */
KVC_API kvc_status kvc_paged_save(const kvc_paged* cache, int64_t seq, const char* path,
                                  const unsigned char* name_space);
KVC_API kvc_status kvc_paged_load(kvc_paged* cache, const char* path,
                                  const unsigned char* name_space, const kvc_executor* executor,
                                  int64_t* seq);

/* PagedStats, and the bytes of committed rows and those held for them. The caller sets struct_size;
 * fields beyond it are not written. */
typedef struct kvc_paged_stats {
  uint32_t struct_size;
  int64_t pages_total;
  int64_t pages_held;
  int64_t pages_reserved;
  int64_t pages_high_water;
  int64_t pages_copied;
  int64_t rows_copied;
  int64_t sequences;
  int64_t open_steps;
  int64_t nbytes;
  int64_t reserved_bytes;
  /* Since 0.2.0. */
  int64_t rows_encoded;
  int64_t pages_cached; /* kept by a kvc_prefix, held by no sequence */
} kvc_paged_stats;
KVC_API kvc_status kvc_paged_get_stats(const kvc_paged* cache, kvc_paged_stats* stats);

/* ---- PagedBatch: rows that go forward together, see paged_batch.h ---- */

typedef struct kvc_batch kvc_batch;

/* num_rows empty rows over a cache that several batches may share, and that lives until the last of
 * them is freed. Freed by kvc_batch_free, which gives the rows back. */
KVC_API kvc_status kvc_batch_create(kvc_paged* cache, int64_t num_rows, kvc_batch** batch);
KVC_API void kvc_batch_free(kvc_batch* batch);

/* begin -> write each layer -> attend over the view -> commit. counts [num_rows]: new tokens of
 * each row; tokens: their ids, packed, or null. key and value are packed [new tokens, H, D], or
 * [num_rows, H, T, D] where every row brings T (KVC_NHD: [num_rows, T, H, D]). accepted null: all.
 */
KVC_API kvc_status kvc_batch_begin(kvc_batch* batch, const int64_t* counts, int64_t num_rows,
                                   const int32_t* tokens, int64_t num_tokens);
KVC_API kvc_status kvc_batch_write(kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                                   const kvc_tensor* value, const kvc_executor* executor);
KVC_API kvc_status kvc_batch_commit(kvc_batch* batch, const int64_t* accepted, int64_t num_rows);
KVC_API kvc_status kvc_batch_rollback(kvc_batch* batch);

/* A forward pass that nobody announces: the first layer reserves, the last commits. key and value
 * [B, H, T, D] (KVC_NHD: [B, T, H, D]); a batch without rows gets B of them. */
KVC_API kvc_status kvc_batch_update(kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                                    const kvc_tensor* value, const kvc_executor* executor);

/* All rows of one layer, the open step's tokens included. Freed by kvc_view_free, valid until the
 * step ends or a row changes. gather: dense copies [num_rows, H, S, D], S rows held of each. */
KVC_API kvc_status kvc_batch_view(const kvc_batch* batch, int64_t layer, kvc_view** view);
KVC_API kvc_status kvc_batch_gather(const kvc_batch* batch, int64_t layer, const kvc_tensor* key,
                                    const kvc_tensor* value, const kvc_executor* executor);
KVC_API kvc_status kvc_batch_lengths(const kvc_batch* batch, int64_t layer, int64_t* lengths,
                                     int64_t num_rows); /* [num_rows] */
/* As kvc_paged_first_positions, and the rows of kvc_batch_view: [num_rows]. */
KVC_API kvc_status kvc_batch_first_positions(const kvc_batch* batch, int64_t layer,
                                             int64_t* positions, int64_t num_rows);
KVC_API kvc_status kvc_batch_rows_held(const kvc_batch* batch, int64_t layer, int64_t* held,
                                       int64_t num_rows);
KVC_API int64_t kvc_batch_num_rows(const kvc_batch* batch); /* 0 for null */

/* Rows come after the others; the rows after one that goes move up; reset releases all. Row i
 * becomes what row indices[i] was; rows a, b become a, a, b, b for n = 2; a fork shares pages.
 * rewind drops the newest counts[b] tokens of row b, truncate keeps the first n of each. */
KVC_API kvc_status kvc_batch_add(kvc_batch* batch, int64_t count);
/* The row becomes a sequence of the same cache with the tokens it has (kvc_prefix_open,
 * kvc_paged_fork), which is the batch's from here on; what it was goes back. */
KVC_API kvc_status kvc_batch_replace(kvc_batch* batch, int64_t row, int64_t seq);
KVC_API kvc_status kvc_batch_release(kvc_batch* batch, int64_t row);
KVC_API void kvc_batch_reset(kvc_batch* batch);
KVC_API kvc_status kvc_batch_select(kvc_batch* batch, const int64_t* indices, int64_t num_indices);
KVC_API kvc_status kvc_batch_repeat(kvc_batch* batch, int64_t n);
KVC_API kvc_status kvc_batch_fork(kvc_batch* batch, kvc_batch** forked); /* kvc_batch_free */
KVC_API kvc_status kvc_batch_rewind(kvc_batch* batch, const int64_t* counts, int64_t num_rows);
KVC_API kvc_status kvc_batch_truncate(kvc_batch* batch, int64_t n);

/* ---- PrefixCache: what was computed once is found again, see prefix.h ---- */

typedef struct kvc_prefix kvc_prefix;
typedef struct kvc_prefix_handle kvc_prefix_handle;

enum { KVC_LRU = 0, KVC_S3FIFO = 1, KVC_ARC = 2, KVC_ADAPTIVE = 3 }; /* eviction */

/* Why a match is not longer. */
enum {
  KVC_MISS_NONE = 0,            /* nothing was asked for */
  KVC_MISS_LAST_TOKEN = 1,      /* the last token is always computed: all others were found */
  KVC_MISS_COLD = 2,            /* the next page was never stored */
  KVC_MISS_EVICTED = 3,         /* it was, and left */
  KVC_MISS_EXPIRED = 4,         /* its time to live is over */
  KVC_MISS_OTHER_NAMESPACE = 5, /* nothing is stored in this namespace, but in others */
  KVC_MISS_WINDOW = 6           /* a layer's last window before a longer one is gone */
};

typedef struct kvc_prefix_options {
  uint32_t struct_size;
  int32_t eviction;
  int64_t ttl;            /* milliseconds that a page is found after it was stored; 0: ever */
  int64_t event_capacity; /* events that are kept until taken */
} kvc_prefix_options;

/* Texts of different namespaces and tenants never meet. The bits stand for all that decides what
 * rows a token gets: weights, tokenizer, stored form, RoPE, adapter, a salt of the caller's. */
typedef struct kvc_prefix_namespace {
  uint32_t struct_size;
  int32_t reserved; /* 0 */
  uint8_t bits[32];
  int64_t tenant;
} kvc_prefix_namespace;

/* Over a cache of kvc_paged_config.prefixes, one at a time; options null: the defaults. The cache
 * lives until it is freed. Freed by kvc_prefix_free; calls come one at a time, together with those
 * of the cache. */
KVC_API kvc_status kvc_prefix_create(kvc_paged* cache, const kvc_prefix_options* options,
                                     kvc_prefix** prefix);
KVC_API void kvc_prefix_free(kvc_prefix* prefix);

/* The longest stored beginning of `tokens`, at most all but the last; nothing found is a handle of
 * length 0. space null: zeros. Its pages stay until kvc_prefix_handle_free, which may also come
 * after kvc_prefix_free. */
KVC_API kvc_status kvc_prefix_match(kvc_prefix* prefix, const int32_t* tokens, int64_t num_tokens,
                                    const kvc_prefix_namespace* space, kvc_prefix_handle** handle);
KVC_API int64_t kvc_prefix_handle_length(const kvc_prefix_handle* handle); /* 0 for null */
KVC_API int32_t kvc_prefix_handle_reason(const kvc_prefix_handle* handle); /* KVC_MISS_... */
KVC_API void kvc_prefix_handle_free(kvc_prefix_handle* handle);

/* A sequence of the handle's tokens, in its namespace, that shares its pages: what is appended to
 * it with ids (kvc_append.tokens) becomes findable. */
KVC_API kvc_status kvc_prefix_open(kvc_prefix* prefix, const kvc_prefix_handle* handle,
                                   int64_t* seq);

/* What a match would find; nothing is held or counted. */
typedef struct kvc_prefix_explanation {
  uint32_t struct_size;
  int32_t reason; /* KVC_MISS_... */
  int64_t length; /* that a match would find */
  int64_t stored; /* tokens that are stored, whether every layer can serve them or not */
  int64_t layer;  /* the first of the group that was the limit; -1: none was */
} kvc_prefix_explanation;
KVC_API kvc_status kvc_prefix_explain(const kvc_prefix* prefix, const int32_t* tokens,
                                      int64_t num_tokens, const kvc_prefix_namespace* space,
                                      kvc_prefix_explanation* explanation);

/* Keeps pages also without the handle, until as many unpins; of all its pages the priority (0 ..
 * 100, 50 is usual, lower ones leave first) and the time to live from now (0: for ever). */
KVC_API kvc_status kvc_prefix_pin(kvc_prefix* prefix, const kvc_prefix_handle* handle);
KVC_API kvc_status kvc_prefix_unpin(kvc_prefix* prefix, const kvc_prefix_handle* handle);
KVC_API kvc_status kvc_prefix_set_priority(kvc_prefix* prefix, const kvc_prefix_handle* handle,
                                           int64_t priority);
KVC_API kvc_status kvc_prefix_set_ttl(kvc_prefix* prefix, const kvc_prefix_handle* handle,
                                      int64_t milliseconds);

/* Bytes of pages that others leave a tenant, -1: no quota; what it has, 0 without one. */
KVC_API kvc_status kvc_prefix_set_quota(kvc_prefix* prefix, int64_t tenant, int64_t bytes);
KVC_API int64_t kvc_prefix_tenant_bytes(const kvc_prefix* prefix, int64_t tenant);

/* How many pages are free now: at most `pages` that no sequence holds, or those past their time. */
KVC_API int64_t kvc_prefix_evict(kvc_prefix* prefix, int64_t pages);
KVC_API int64_t kvc_prefix_remove_expired(kvc_prefix* prefix);

/* PrefixStats; misses by KVC_MISS_... The caller sets struct_size. */
typedef struct kvc_prefix_stats {
  uint32_t struct_size;
  int64_t matches;
  int64_t hits;
  int64_t tokens_asked;
  int64_t tokens_found;
  int64_t tokens_reused;
  int64_t misses[7];
  int64_t pages_stored;
  int64_t pages_evicted;
  int64_t pages_removed;
  int64_t pages;
  int64_t pages_unheld;
  int64_t bytes;
  int64_t namespaces;
} kvc_prefix_stats;
KVC_API kvc_status kvc_prefix_get_stats(const kvc_prefix* prefix, kvc_prefix_stats* stats);

/* kind 0: a page was stored, 1: removed, 2: `lost` events up to `number` were lost. `key` is of a
 * page's tokens and all before them, `parent` that of the page before. */
typedef struct kvc_prefix_event {
  uint32_t struct_size;
  int32_t kind;
  int64_t number;
  int64_t lost;
  uint64_t key;
  uint64_t parent;
  int64_t position;
} kvc_prefix_event;
/* The oldest events, at most `capacity`: *taken of them. The caller sets struct_size of each. */
KVC_API kvc_status kvc_prefix_take_events(kvc_prefix* prefix, kvc_prefix_event* events,
                                          int64_t capacity, int64_t* taken);

#ifdef __cplusplus
}
#endif

#endif /* KVCACHE_C_H_ */
