// Which instruction sets this machine has, best last.
#pragma once

#include <vector>

#include "kernels.h"

namespace tinycluster {

std::vector<const Kernels*> supported_kernels();

}  // namespace tinycluster
