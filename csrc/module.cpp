// The Python module densenet_fast._C. Importing it registers the operators; its functions tell what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace densenet_fast {
// Of dispatch.cpp; PyTorch's headers and pybind11's are kept in separate files.
std::vector<std::string> instruction_sets();
std::vector<std::string> compiled_instruction_sets();
std::string instruction_set_in_use();
void use_instruction_set(const std::string& name);
}  // namespace densenet_fast

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_facts",
      [] {
        pybind11::dict facts;
        facts["compiler"] = DENSENET_FAST_COMPILER;
        facts["flags"] = DENSENET_FAST_FLAGS;
        facts["torch"] = DENSENET_FAST_TORCH;
        facts["cuda"] = false;
        return facts;
      },
      "How the library was built: compiler, flags, the PyTorch it was compiled against, whether it has CUDA kernels.");
  m.def("compiled_instruction_sets", &densenet_fast::compiled_instruction_sets, "CPU instruction sets compiled in.");
  m.def("instruction_sets", &densenet_fast::instruction_sets, "Those that run on this machine, best first.");
  m.def("instruction_set_in_use", &densenet_fast::instruction_set_in_use, "The one the kernels use.");
  m.def("use_instruction_set", &densenet_fast::use_instruction_set, pybind11::arg("name"),
        "Let the kernels use another one of instruction_sets().");
}
