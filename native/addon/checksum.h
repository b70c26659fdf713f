// The checksum of chunks of memory that another process wrote.
#pragma once

#include <vector>

#include "addon/environment.h"

namespace quorate::addon {

std::vector<napi_property_descriptor> checksumFunctions(Environment* environment);

}  // namespace quorate::addon
