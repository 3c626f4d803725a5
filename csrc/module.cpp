// The Python module densenet_fast._C. Importing it registers the operators; its functions tell what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cxxabi.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

namespace densenet_fast {
// Of dispatch.cpp; PyTorch's headers and pybind11's are kept in separate files.
std::vector<std::string> instruction_sets();
std::vector<std::string> compiled_instruction_sets();
std::string instruction_set_in_use();
void use_instruction_set(const std::string& name);
#ifdef DENSENET_FAST_CUDA
std::string why_no_stream();  // of cuda_context.cpp; empty if there is one
#else
std::string why_no_stream() { return "the compiled library was built without CUDA kernels (setup.py says why)"; }
#endif

// PyTorch's setting for convolutions in fp32; the stable ABI does not tell it.
bool tf32_allowed() {
  const pybind11::gil_scoped_acquire gil;
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<pybind11::object> getter;
  const pybind11::object& get =
      getter
          .call_once_and_store_result(
              [] { return pybind11::object(pybind11::module_::import("torch._C").attr("_get_fp32_precision_getter")); })
          .get_stored();
  return get("cuda", "conv").cast<std::string>() == "tf32";
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

}  // namespace
}  // namespace densenet_fast

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_facts",
      [] {
        pybind11::dict facts;
        facts["compiler"] = DENSENET_FAST_COMPILER;
        facts["flags"] = DENSENET_FAST_FLAGS;
        facts["torch"] = DENSENET_FAST_TORCH;
#ifdef DENSENET_FAST_CUDA
        facts["nvcc"] = DENSENET_FAST_CUDA;
        facts["architectures"] = DENSENET_FAST_ARCHITECTURES;
#endif
        return facts;
      },
      "How the library was built: compiler, flags, the PyTorch it was compiled against; with CUDA kernels also nvcc's "
      "version and the architectures.");
  m.def(
      "cuda_kernels",
      [] {
        std::vector<std::tuple<std::string, std::string, int, int, int>> rows;
        for (const densenet_fast::Resources& r : densenet_fast::kernel_resources)
          rows.emplace_back(densenet_fast::demangled(r.kernel), r.architecture, r.registers, r.shared_bytes,
                            r.spilled_bytes);
        return rows;
      },
      "(kernel with its tile, architecture, registers, static shared memory, bytes spilled) of every CUDA kernel.");
  m.def(
      "why_not_cuda",
      []() -> std::optional<std::string> {
        const std::string why = densenet_fast::why_no_stream();
        return why.empty() ? std::nullopt : std::optional(why);
      },
      "Why the CUDA kernels cannot be launched whatever the device, as a clause; None if they can.");
  m.def("compiled_instruction_sets", &densenet_fast::compiled_instruction_sets, "CPU instruction sets compiled in.");
  m.def("instruction_sets", &densenet_fast::instruction_sets, "Those that run on this machine, best first.");
  m.def("instruction_set_in_use", &densenet_fast::instruction_set_in_use, "The one the kernels use.");
  m.def("use_instruction_set", &densenet_fast::use_instruction_set, pybind11::arg("name"),
        "Let the kernels use another one of instruction_sets().");
}
