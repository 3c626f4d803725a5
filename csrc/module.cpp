// The Python module densenet_fast._C. Importing it registers the operators; its functions tell what was built.
// It keeps to CPython's limited API, so one library serves every Python from setup.py's on.
#include <Python.h>

#include <cxxabi.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace densenet_fast {
// Of dispatch.cpp and threads.cpp; PyTorch's headers and Python's are kept in separate files.
std::vector<std::string> instruction_sets();
std::vector<std::string> compiled_instruction_sets();
std::string instruction_set_in_use();
void use_instruction_set(const std::string& name);
std::string why_not_amx();  // empty if it is used, or could be
void use_threads(const std::string& whose);
#ifdef DENSENET_FAST_CUDA
std::string why_no_stream();  // of cuda_context.cpp; empty if there is one
#else
std::string why_no_stream() { return "the compiled library was built without CUDA kernels (setup.py says why)"; }
#endif

// PyTorch's setting for convolutions in fp32; the stable ABI does not tell it.
bool tf32_allowed() {
  const PyGILState_STATE gil = PyGILState_Ensure();
  static PyObject* getter = nullptr;  // under the GIL
  if (getter == nullptr) {
    PyObject* const module = PyImport_ImportModule("torch._C");
    if (module != nullptr) getter = PyObject_GetAttrString(module, "_get_fp32_precision_getter");
    Py_XDECREF(module);
  }
  PyObject* const precision = getter != nullptr ? PyObject_CallFunction(getter, "ss", "cuda", "conv") : nullptr;
  PyObject* const text = precision != nullptr ? PyUnicode_AsUTF8String(precision) : nullptr;
  const bool known = text != nullptr;
  const bool allowed = known && std::string_view(PyBytes_AsString(text)) == "tf32";
  if (!known) PyErr_Clear();
  Py_XDECREF(text);
  Py_XDECREF(precision);
  PyGILState_Release(gil);
  if (!known) throw std::runtime_error("PyTorch did not tell the precision of convolutions in float32");
  return allowed;
}

namespace {

// What ptxas told of a kernel for one architecture.
struct Resources {
  const char *kernel, *architecture;
  int registers, shared_bytes, spilled_bytes;
};

const std::vector<Resources> kernel_resources = {
#ifdef DENSENET_FAST_CUDA
#include DENSENET_FAST_RESOURCES
#endif
};

std::string demangled(const char* name) {
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  const std::string result = text != nullptr ? text : name;
  std::free(text);
  return result;
}

// A new reference, or null with Python's error set.
PyObject* python(const std::string& text) { return PyUnicode_FromString(text.c_str()); }

PyObject* python(const std::vector<std::string>& texts) {
  PyObject* const list = PyList_New(0);
  for (const std::string& text : texts) {
    PyObject* const item = list != nullptr ? python(text) : nullptr;
    const bool added = item != nullptr && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    if (!added) {
      Py_XDECREF(list);
      return nullptr;
    }
  }
  return list;
}

PyObject* build_facts(PyObject*, PyObject*) {
  const std::vector<std::pair<const char*, const char*>> facts = {
      {"compiler", DENSENET_FAST_COMPILER}, {"flags", DENSENET_FAST_FLAGS},
      {"torch", DENSENET_FAST_TORCH},
#ifdef DENSENET_FAST_CUDA
      {"nvcc", DENSENET_FAST_CUDA},         {"architectures", DENSENET_FAST_ARCHITECTURES},
#endif
  };
  PyObject* const dict = PyDict_New();
  for (const auto& [name, fact] : facts) {
    PyObject* const text = dict != nullptr ? python(std::string(fact)) : nullptr;
    const bool added = text != nullptr && PyDict_SetItemString(dict, name, text) == 0;
    Py_XDECREF(text);
    if (!added) {
      Py_XDECREF(dict);
      return nullptr;
    }
  }
  return dict;
}

PyObject* cuda_kernels(PyObject*, PyObject*) {
  PyObject* const list = PyList_New(0);
  for (const Resources& r : kernel_resources) {
    PyObject* const row = list != nullptr ? Py_BuildValue("(ssiii)", demangled(r.kernel).c_str(), r.architecture,
                                                          r.registers, r.shared_bytes, r.spilled_bytes)
                                          : nullptr;
    const bool added = row != nullptr && PyList_Append(list, row) == 0;
    Py_XDECREF(row);
    if (!added) {
      Py_XDECREF(list);
      return nullptr;
    }
  }
  return list;
}

// A reason; None if there is none.
template <auto function>
PyObject* reason(PyObject*, PyObject*) {
  const std::string why = function();
  if (!why.empty()) return python(why);
  Py_INCREF(Py_None);
  return Py_None;
}

// function(text); None, or null with Python's error set.
template <auto function>
PyObject* call_with(PyObject*, PyObject* argument) {
  PyObject* const text = PyUnicode_AsUTF8String(argument);
  if (text == nullptr) return nullptr;
  const std::string wanted = PyBytes_AsString(text);
  Py_DECREF(text);
  try {
    function(wanted);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_INCREF(Py_None);
  return Py_None;
}

template <auto function>
PyObject* result_of(PyObject*, PyObject*) {
  return python(function());
}

PyMethodDef functions[] = {
    {"build_facts", build_facts, METH_NOARGS,
     "How the library was built: compiler, flags, the PyTorch it was compiled against; with CUDA kernels also nvcc's "
     "version and the architectures."},
    {"cuda_kernels", cuda_kernels, METH_NOARGS,
     "(kernel with its tile, architecture, registers, static shared memory, bytes spilled) of every CUDA kernel."},
    {"why_not_cuda", reason<why_no_stream>, METH_NOARGS,
     "Why the CUDA kernels cannot be launched whatever the device, as a clause; None if they can."},
    {"compiled_instruction_sets", result_of<compiled_instruction_sets>, METH_NOARGS,
     "CPU instruction sets compiled in."},
    {"instruction_sets", result_of<instruction_sets>, METH_NOARGS, "Those that run on this machine, best first."},
    {"instruction_set_in_use", result_of<instruction_set_in_use>, METH_NOARGS, "The one the kernels use."},
    {"use_instruction_set", call_with<use_instruction_set>, METH_O,
     "Let the kernels use another one of instruction_sets()."},
    {"why_not_amx", reason<why_not_amx>, METH_NOARGS,
     "Why amx_bf16 is not one of instruction_sets(), as a clause; None if it is."},
    {"use_threads", call_with<use_threads>, METH_O,
     "Whose threads the kernels' parallel regions run on: 'pytorch' PyTorch's, 'own' the library's, or 'either', "
     "PyTorch's unless others keep the processors busy."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace densenet_fast

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&densenet_fast::module); }
