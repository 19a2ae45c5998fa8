#include "dispatch.h"

namespace tinycluster {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> found = {&plain_kernels};
#ifdef TINYCLUSTER_X86
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!has_avx2) return found;
  found.push_back(&avx2_kernels);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!has_avx512) return found;
  found.push_back(&avx512_kernels);
  if (__builtin_cpu_supports("avx512vnni")) found.push_back(&vnni_kernels);
#endif
  return found;
}

}  // namespace tinycluster
