// Reference cycles through objects of ours.
#ifndef KVCACHE_PYTHON_BINDINGS_COLLECT_H_
#define KVCACHE_PYTHON_BINDINGS_COLLECT_H_

#include <nanobind/nanobind.h>

namespace kvcache::python {

// Tells the garbage collector that the member `Held` of a T is a Python object: a cache of a
// derived class may hold a T that holds the cache. The dictionary of that class is where such a
// cycle breaks.
template <typename T, nanobind::object T::*Held>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nanobind::inst_ready(self)) return 0;
  PyObject* held = (nanobind::inst_ptr<T>(self)->*Held).ptr();
  Py_VISIT(held);
  return 0;
}

// The type slots of a T with that.
template <typename T, nanobind::object T::*Held>
inline PyType_Slot collected[] = {{Py_tp_traverse, reinterpret_cast<void*>(&traverse<T, Held>)},
                                  {0, nullptr}};

}  // namespace kvcache::python

#endif  // KVCACHE_PYTHON_BINDINGS_COLLECT_H_
