// The paged layers of a model's cache as one file, and each as bytes.
#include "python/bindings/hf_files.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache_file.h"
#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/paths.h"
#include "python/bindings/prefix.h"
#include "python/bindings/signatures.h"
#include "python/bindings/turn.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {

// --- The layers. ---

Result<std::vector<std::vector<std::byte>>> PagedLayer::to_bytes() {
  std::vector<std::vector<std::byte>> rows;
  if (seqs_.empty()) return rows;
  const std::lock_guard lock(pool_->mutex);
  KVC_RETURN_IF_ERROR(settle());
  for (const SequenceId seq : seqs_) {
    KVC_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, CacheFile::to_bytes(pool_->cache, seq));
    rows.push_back(std::move(bytes));
  }
  return rows;
}

Status PagedLayer::save(std::span<PagedLayer* const> layers, const std::string& path,
                        const PrefixNamespace& space, std::span<const std::int32_t> tokens) {
  std::vector<std::unique_lock<std::mutex>> locks;
  std::vector<CacheFile::Part> parts;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    PagedLayer& layer = *layers[i];
    if (layer.batch() != 1) {
      return Status(StatusCode::kInvalidArgument,
                    "layers[" + std::to_string(i) + "].batch: found " +
                        std::to_string(layer.batch()) + ", expected 1: a file has one text");
    }
    locks.emplace_back(layer.pool_->mutex);
    KVC_RETURN_IF_ERROR(layer.settle());
    parts.push_back({&layer.pool_->cache, layer.seqs_.front()});
  }
  return CacheFile::save(parts, path, space, tokens);
}

Status PagedLayer::load(std::span<PagedLayer* const> layers, std::span<const CacheFile> files,
                        const PrefixNamespace& space) {
  struct Filled {
    std::shared_ptr<Pool> pool;
    LayerSpec spec;
    std::vector<SequenceId> seqs;
  };
  const CacheFileInfo& info = files.front().info();
  if (info.layers.size() != layers.size()) {
    return Status(StatusCode::kInvalidArgument, "layers: found " +
                                                    std::to_string(info.layers.size()) +
                                                    ", expected " + std::to_string(layers.size()));
  }
  const auto batch = static_cast<std::int64_t>(files.size());
  std::vector<Filled> filled;
  std::vector<PagedCache*> caches;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const PagedLayer& layer = *layers[i];
    if (layer.batch() != 0) {
      return Status(StatusCode::kInvalidArgument, "layer: found rows, expected none");
    }
    const LayerSpec spec = layer.spec_for(info.layers[i]);
    const std::int64_t needed = layer.pages_for(batch, info.length);
    KVC_ASSIGN_OR_RETURN(std::shared_ptr<Pool> pool, layer.new_pool(spec, 2 * needed, needed));
    caches.push_back(&pool->cache);
    filled.push_back({std::move(pool), spec, {}});
  }
  for (const CacheFile& file : files) {
    if (file.info().length != info.length) {
      return Status(StatusCode::kInvalidArgument,
                    "length: found " + std::to_string(file.info().length) + ", expected " +
                        std::to_string(info.length) + ", that of the first text");
    }
    KVC_ASSIGN_OR_RETURN(const std::vector<SequenceId> seqs, file.load(caches, space));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (layers[i]->records_) KVC_RETURN_IF_ERROR(caches[i]->hold_rows(seqs[i], true));
      filled[i].seqs.push_back(seqs[i]);
    }
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    PagedLayer& layer = *layers[i];
    layer.pool_ = std::move(filled[i].pool);
    layer.spec_ = filled[i].spec;
    layer.seqs_ = std::move(filled[i].seqs);
    layer.now_ = {info.length, layer.now_.epoch + 1};
  }
  return {};
}

// --- In Python. ---

namespace {

using Pieces = nb::typed<nb::list, nb::bytes>;
using GivenLayers = nb::typed<nb::list, PagedLayer>;

// Layers in turn.
struct Layers {
  explicit Layers(const nb::list& given) {
    for (nb::handle one : given) {
      all.push_back(&nb::cast<PagedLayer&>(one));
      turns.emplace_back(all.back()->turn());
    }
    if (all.empty()) raise(PyExc_ValueError, "layers: found none, expected at least one");
  }
  std::vector<PagedLayer*> all;
  std::deque<Turn> turns;
};

Pieces to_bytes(PagedLayer& self) {
  Result<std::vector<std::vector<std::byte>>> rows = std::vector<std::vector<std::byte>>();
  {
    const Turn turn(self.turn());
    const Unlocked unlocked(self.elements());
    rows = self.to_bytes();
  }
  nb::list pieces;
  for (const std::vector<std::byte>& bytes : take(std::move(rows))) {
    pieces.append(nb::bytes(bytes.data(), bytes.size()));
  }
  return nb::borrow<Pieces>(pieces);
}

void from_bytes(PagedLayer& self, const Pieces& pieces, bool records, std::int64_t loaded) {
  std::vector<nb::bytes> kept;
  std::vector<std::span<const std::byte>> given;
  for (nb::handle one : pieces) {
    kept.push_back(nb::cast<nb::bytes>(one));
    given.emplace_back(static_cast<const std::byte*>(kept.back().data()), kept.back().size());
  }
  const Turn turn(self.turn());
  if (self.batch() != 0) raise(PyExc_ValueError, "layer: found rows, expected none");
  const bool before = self.records();
  check(self.record(records));
  if (given.empty()) return;
  Status status;
  {
    const Unlocked unlocked(kLongCall);
    status = [&]() -> Status {
      std::vector<CacheFile> files;
      for (const std::span<const std::byte> bytes : given) {
        KVC_ASSIGN_OR_RETURN(CacheFile file, CacheFile::over(bytes));
        files.push_back(std::move(file));
      }
      PagedLayer* const layer = &self;
      return PagedLayer::load(std::span(&layer, 1), files, {});
    }();
  }
  if (!status.ok()) check(self.record(before));
  check(status);
  self.set_loaded(loaded);
}

void save_layers(const GivenLayers& layers, GivenPath path, GivenBytes name, GivenIds tokens) {
  const std::string file = path_from(path);
  const PrefixNamespace space = space_from(name, 0);
  const std::vector<std::int32_t> ids = int32_values("tokens", tokens);
  const Layers given(layers);
  Status status;
  {
    const Unlocked unlocked(kLongCall);
    status = PagedLayer::save(given.all, file, space, ids);
  }
  check_file(status, file);
}

std::vector<std::int32_t> load_layers(const GivenLayers& layers, GivenPath path, GivenBytes name) {
  const std::string file = path_from(path);
  const PrefixNamespace space = space_from(name, 0);
  const Layers given(layers);
  std::vector<std::int32_t> tokens;
  Status status;
  {
    const Unlocked unlocked(kLongCall);
    status = [&]() -> Status {
      KVC_ASSIGN_OR_RETURN(const CacheFile opened, CacheFile::open(file));
      if (opened.info().kind != CacheFileInfo::Kind::kSequence) {
        return Status(StatusCode::kUnsupported,
                      "kind: found a file of kvcache of another kind, "
                      "expected a sequence, as kvcache.hf.save writes");
      }
      if (opened.info().space != space) {
        return Status(StatusCode::kInvalidArgument,
                      "model: found rows of another one, expected those of this model (its "
                      "weights, config, adapters and attention, and these versions of kvcache, "
                      "torch and transformers)");
      }
      KVC_RETURN_IF_ERROR(PagedLayer::load(given.all, std::span(&opened, 1), space));
      tokens = opened.info().tokens;
      return {};
    }();
  }
  check_file(status, file);
  return tokens;
}

// XXH3 by the MiB, in SHA-256: of weights there are gigabytes.
nb::bytes digest(nb::handle buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  Result<std::string> made = std::string();
  {
    const Unlocked unlocked(view.len);
    made = digest_of({static_cast<const std::byte*>(view.buf), static_cast<std::size_t>(view.len)});
  }
  PyBuffer_Release(&view);
  const std::string bytes = take(std::move(made));
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_hf_files(nb::module_& hf, nb::class_<PagedLayer>& layer) {
  layer.def("to_bytes", &to_bytes, "The rows of each sequence of the batch, as files have them.")
      .def("from_bytes", &from_bytes, "pieces"_a, "records"_a, "loaded"_a,
           "The same back into a layer without rows, of the same options; records, loaded_tokens: "
           "as the other had them.\n\nErrors: those of PagedCache.load.")
      .def_prop_ro(
          "loaded_tokens", [](const PagedLayer& self) { return self.loaded_tokens(); },
          "The shortest that rows can be taken back to: see loaded().");
  hf.def("save_layers", &save_layers, "layers"_a, "path"_a, "space"_a, "tokens"_a,
         "Writes the rows of all layers, of a batch of one, as one sequence.\n\nErrors: OSError, "
         "ValueError for another batch and layers of other lengths; the old file is as it was.");
  hf.def("load_layers", &load_layers, "layers"_a, "path"_a, "space"_a,
         "Such rows into layers without any. Returns the ids of the tokens.\n\nErrors: those of "
         "PagedCache.load; no layer has changed then.");
  hf.def("digest", &digest, "buffer"_a, "32 bytes that stand for those of a buffer.");
}

}  // namespace kvcache::python
