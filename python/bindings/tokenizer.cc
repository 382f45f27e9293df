#include "python/bindings/tokenizer.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "python/bindings/arrays.h"
#include "python/bindings/errors.h"
#include "python/bindings/signatures.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvcache::python {
namespace {

constexpr char kText[] = "str";

}  // namespace

std::string text_from(const char* name, nb::handle object, const char* expected) {
  if (!PyUnicode_Check(object.ptr())) {
    raise(PyExc_TypeError, std::string(name) + ": found " + nb::type_name(object.type()).c_str() +
                               ", expected " + expected);
  }
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (text == nullptr) throw nb::python_error();
  return {text, static_cast<std::size_t>(size)};
}

void bind_tokenizer(nb::module_& module) {
  nb::class_<PyTokenizer>(module, "Tokenizer",
                          "Text to token ids and back, as the model's tokenizer.json says. "
                          "Immutable: any number of threads.")
      .def(
          "encode",
          [](const PyTokenizer& self, Given<kText> text, bool add_special_tokens) {
            return take(self.core().encode(text_from("text", text), add_special_tokens));
          },
          "text"_a.none(), "add_special_tokens"_a = true,
          "Ids of a text. Special tokens written in it become their ids; add_special_tokens adds "
          "those that the\nmodel expects around a text.\n\nErrors: TypeError, ValueError; "
          "NotImplementedError for a text that its pattern gives up on.")
      .def(
          "decode",
          [](const PyTokenizer& self, GivenIds ids, bool skip_special) {
            return self.core().decode(int32_values("ids", ids), skip_special);
          },
          "ids"_a.none(), "skip_special"_a = false,
          "The text of ids, with U+FFFD where their bytes are no UTF-8. Ids that do not exist are "
          "left out.\n\nErrors: ValueError.")
      .def(
          "token_text",
          [](const PyTokenizer& self, std::int32_t id) {
            return std::string(self.core().token_text(id));
          },
          "id"_a, "A token as the file writes it; empty for an id that does not exist.")
      .def(
          "find_token",
          [](const PyTokenizer& self, const std::string& content) {
            return self.core().find_token(content);
          },
          "content"_a, "The id of a token by its content, or None.")
      .def_prop_ro(
          "vocab_size", [](const PyTokenizer& self) { return self.core().vocab_size(); },
          "One more than the highest id.")
      .def_prop_ro(
          "special_ids", [](const PyTokenizer& self) { return self.core().special_ids(); },
          "Ids of the special tokens, ascending.")
      .def("__repr__", [](const PyTokenizer& self) {
        return "Tokenizer(vocab_size=" + std::to_string(self.core().vocab_size()) +
               ", special=" + std::to_string(self.core().special_ids().size()) + ")";
      });
}

}  // namespace kvcache::python
