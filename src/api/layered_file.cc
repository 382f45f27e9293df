// CacheFile of layered caches.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "api/cache_file_impl.h"
#include "api/cache_impl.h"
#include "base/door.h"
#include "base/expect.h"
#include "tensor/codecs/raw_rows.h"

namespace kvcache {
inline namespace v1 {

using internal::at_door;
using internal::ContiguousLayer;
using internal::File;
using internal::LayeredStorage;
using internal::LayerShape;
using internal::refusal;
using internal::RowArray;
using internal::RowPiece;
using internal::StoredLayer;
using internal::StoredSequence;

namespace {

StoredSequence describe(const LayeredStorage& storage, const PrefixNamespace& space) {
  StoredSequence out;
  out.kind = internal::FileKind::kLayers;
  out.space = space;
  // A file has one layer at least.
  for (std::int64_t i = 0; i < std::max<std::int64_t>(1, storage.num_layers()); ++i) {
    StoredLayer stored;
    stored.extents = {0, 0, 0};  // of one that was never populated
    if (const ContiguousLayer* layer = storage.find(i)) {
      stored.spec = layer->shape().spec;
      stored.extents = {layer->shape().batch, layer->length(), layer->first_position()};
    }
    out.length = std::max(out.length, stored.extents.length);
    out.layers.push_back(stored);
  }
  out.coded = out.length;
  out.block_tokens = internal::usual_block_tokens(out);
  return out;
}

// Rows of a block and of all batch rows of a layer: get (kIntoLayer false) or put.
template <bool kIntoLayer>
void move_piece(const ContiguousLayer& layer, const RowPiece& piece, const RowArray& array,
                std::byte* block) noexcept {
  const BufferSpec& spec = layer.shape().spec.buffers[piece.buffer];
  const RowsView view = layer.rows_view(piece.buffer);
  const std::int64_t rows = spec.heads * array.rows;  // of a batch row
  const std::int64_t scales = rows * array.format.num_scales(spec.dim);
  for (std::int64_t b = 0; b < layer.shape().batch; ++b) {
    const internal::RawRows raw{block + array.codes + b * rows * array.format.code_bytes(spec.dim),
                                block + array.scales + 2 * b * scales,
                                block + array.zeros + b * scales, array.rows};
    internal::move_raw<kIntoLayer>(view, spec, b, piece.begin, piece.end - piece.begin, raw,
                                   piece.at);
  }
}

Status write_to(File& file, const LayeredStorage& storage, const PrefixNamespace& space) {
  internal::FileHeader header = internal::make_header(describe(storage, space));
  return write_sequence(file, header,
                        [&](const RowPiece& piece, const RowArray& array, std::byte* block) {
                          move_piece<false>(*storage.find(piece.layer), piece, array, block);
                        });
}

// Whether a cache can have such a layer.
Status check_layer(const internal::StorageOptions& options, std::size_t number,
                   const StoredLayer& layer) {
  if (layer.spec.num_buffers == 0) return {};
  const std::string name = "layers[" + std::to_string(number) + "]";
  for (std::int32_t b = 0; b < layer.spec.num_buffers; ++b) {
    const RowFormat& found = layer.spec.buffers[b].format;
    RowFormat expected = b == 0 ? options.keys : options.values;
    expected.dtype = options.dtype.value_or(found.dtype);
    KVC_RETURN_IF_ERROR(
        internal::expect_format(name + ".buffers[" + std::to_string(b) + "]", found, expected));
  }
  if (options.fixed_capacity > 0 && layer.extents.length > options.fixed_capacity) {
    return refusal(StatusCode::kOutOfRange, name + ".length", layer.extents.length,
                   "at most the capacity of " + std::to_string(options.fixed_capacity));
  }
  return {};
}

}  // namespace

Status CacheFile::Impl::load(Cache& cache, const PrefixNamespace& space) const {
  KVC_RETURN_IF_ERROR(check_start(internal::FileKind::kLayers, space));
  Cache::Impl& mine = *cache.impl_;
  const StoredSequence& seq = header.seq;
  std::int64_t layers = 0;
  for (std::size_t i = 0; i < seq.layers.size(); ++i) {
    if (seq.layers[i].spec.num_buffers > 0) layers = static_cast<std::int64_t>(i) + 1;
    KVC_RETURN_IF_ERROR(check_layer(mine.storage.options(), i, seq.layers[i]));
  }
  const std::int64_t most = mine.fixed_layers > 0 ? mine.fixed_layers : internal::kMaxLayers;
  if (layers > most) {
    return refusal(StatusCode::kOutOfRange, "layers", layers, "at most " + std::to_string(most));
  }
  LayeredStorage fresh(mine.storage.options(), mine.fixed_layers);
  const Layout layout = fresh.options().layout;
  for (std::int64_t i = 0; i < layers; ++i) {
    const StoredLayer& layer = seq.layers[static_cast<std::size_t>(i)];
    if (layer.spec.num_buffers == 0) continue;
    KVC_RETURN_IF_ERROR(fresh.make_room(i, LayerShape{layer.extents.batch, layer.spec, layout},
                                        layer.extents.length));
  }
  std::vector<std::byte> room(static_cast<std::size_t>(blocks().most_bytes()));
  for (std::int64_t block = 0; block < seq.num_blocks(); ++block) {
    KVC_RETURN_IF_ERROR(
        internal::read_block(*file, blocks(), static_cast<std::size_t>(block), room).status());
    walk_block(seq, block, [&](const RowPiece& piece, const RowArray& array) {
      move_piece<true>(*fresh.find(piece.layer), piece, array, room.data());
    });
  }
  for (std::int64_t i = 0; i < layers; ++i) {
    const StoredLayer& layer = seq.layers[static_cast<std::size_t>(i)];
    if (layer.spec.num_buffers > 0) fresh.set_rows(i, layer.extents.length, layer.extents.position);
  }
  mine.storage.take_rows(std::move(fresh));
  mine.changed();
  return {};
}

Status CacheFile::save(const Cache& cache, const std::string& path, const PrefixNamespace& space) {
  return at_door([&] {
    return internal::replace_file(internal::files(), path, [&](File& file) {
      return write_to(file, cache.impl_->storage, space);
    });
  });
}

Status CacheFile::load(Cache& cache, const std::string& path, const PrefixNamespace& space) {
  return at_door([&]() -> Status {
    KVC_ASSIGN_OR_RETURN(const CacheFile file, open(path));
    return file.load(cache, space);
  });
}

Status CacheFile::load(Cache& cache, const PrefixNamespace& space) const {
  return at_door([&] { return impl_->load(cache, space); });
}

Result<std::vector<std::byte>> CacheFile::to_bytes(const Cache& cache,
                                                   const PrefixNamespace& space) {
  return at_door([&]() -> Result<std::vector<std::byte>> {
    internal::MemoryFile file;
    KVC_RETURN_IF_ERROR(write_to(file, cache.impl_->storage, space));
    return std::move(file.bytes());
  });
}

}  // namespace v1
}  // namespace kvcache
