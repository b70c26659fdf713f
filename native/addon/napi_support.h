// The one place that includes napi.h, and sees to the settings that all of the addon must be compiled with: its functions are
// inline, and where one file has other settings than the next, the linker picks one of the two. Exceptions of node-addon-api
// are on; an exception that cannot be thrown because its environment is being terminated (worker.terminate()) is dropped
// instead of aborting the process.
#pragma once

#if !defined(NAPI_CPP_EXCEPTIONS) || !defined(NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS)
#error "NAPI_CPP_EXCEPTIONS and NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS must be defined by the build"
#endif

#include <napi.h>
