// Which threads have V8 compile functions at their first call, and the end of that with the last of them.
#pragma once

#include <vector>

#include "addon/environment.h"

namespace quorate::addon {

std::vector<napi_property_descriptor> firstCallFunctions(Environment* environment);
// The thread has ended, perhaps without having said that it does not want it any more.
void endFirstCalls(Environment& environment);

}  // namespace quorate::addon
