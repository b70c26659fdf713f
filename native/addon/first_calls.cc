// See first_calls.h. V8 is told by JavaScript (v8.setFlagsFromString), but for the end of a thread that was terminated: then by the
// function behind that, which Node-API does not have and every program of Node.js exports.
#include "addon/first_calls.h"

#include <dlfcn.h>

#include <mutex>

namespace quorate::addon {

namespace {

std::mutex mutex;
size_t wanted = 0;  // of all threads

Napi::Value beginFirstCalls(Environment& environment, const Napi::CallbackInfo&) {
  const std::lock_guard<std::mutex> guard(mutex);
  environment.firstCalls++;
  return Napi::Boolean::New(environment.env(), wanted++ == 0);
}

Napi::Value endFirstCalls(Environment& environment, const Napi::CallbackInfo&) {
  const std::lock_guard<std::mutex> guard(mutex);
  if (environment.firstCalls == 0) return Napi::Boolean::New(environment.env(), false);
  environment.firstCalls--;
  return Napi::Boolean::New(environment.env(), --wanted == 0);
}

}  // namespace

std::vector<napi_property_descriptor> firstCallFunctions(Environment* environment) {
  return {
      function<beginFirstCalls>(environment, "beginFirstCalls"),
      function<endFirstCalls>(environment, "endFirstCalls"),
  };
}

void endFirstCalls(Environment& environment) {
  const std::lock_guard<std::mutex> guard(mutex);
  if (environment.firstCalls == 0) return;
  wanted -= environment.firstCalls;
  environment.firstCalls = 0;
  if (wanted > 0) return;
  // void v8::V8::SetFlagsFromString(const char*)
  void* const setFlags = dlsym(RTLD_DEFAULT, "_ZN2v82V818SetFlagsFromStringEPKc");
  if (setFlags != nullptr) reinterpret_cast<void (*)(const char*)>(setFlags)("--no-always-sparkplug");
}

}  // namespace quorate::addon
