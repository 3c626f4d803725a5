// In the place of csrc/module.cpp, which asks Python: for libraries of entries and launches alone.
namespace densenet_fast {
bool tf32_allowed() { return false; }
}  // namespace densenet_fast
