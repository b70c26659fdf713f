// The one place that includes napi.h, with the settings that every file of the addon must share. Exceptions of
// node-addon-api are on; an exception that cannot be thrown because its environment is being terminated
// (worker.terminate()) is dropped instead of aborting the process.
#pragma once

#ifndef NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#endif

#include <napi.h>
