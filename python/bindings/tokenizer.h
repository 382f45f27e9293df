// The tokenizer of a model in Python, and texts that come in.
#ifndef KVCACHE_PYTHON_BINDINGS_TOKENIZER_H_
#define KVCACHE_PYTHON_BINDINGS_TOKENIZER_H_

#include <nanobind/nanobind.h>

#include <memory>
#include <string>

#include "python/bindings/text_stream.h"

namespace kvcache::python {

struct PyTokenizer {
  std::shared_ptr<const Loaded> loaded;
  const runner::Tokenizer& core() const { return loaded->files.tokenizer; }
};

// An argument of that name. Errors: TypeError.
std::string text_from(const char* name, nanobind::handle object, const char* expected = "str");

void bind_tokenizer(nanobind::module_& module);

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_TOKENIZER_H_
