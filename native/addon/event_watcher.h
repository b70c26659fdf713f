// Joins a descriptor that tells of events (of a completion channel, of a context's asynchronous events) to the event
// loop of a thread.
#pragma once

#include <functional>
#include <memory>

#include "addon/environment.h"

namespace quorate::addon {

// Takes one event and hands what it is to `deliver`, or to nobody if it concerns nobody; false if none is pending.
using TakeEvent = std::function<bool(Environment&, const std::function<void(napi_value)>& deliver)>;

// Watches `source` in this thread with `callback`: a function; null ends the watch. One watch per object and thread, a
// second call replaces the callback.
void watchEvents(Environment& environment, const std::shared_ptr<VerbsObject>& source, const Napi::Value& callback,
                 const std::function<int()>& descriptor, const TakeEvent& take);

// ref() and unref() of the watch.
void setWatcherRef(Environment& environment, const VerbsObject* source, bool hold);
template <bool hold>
Napi::Value setWatcherRef(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  setWatcherRef(environment, self.object.get(), hold);
  return environment.env().Undefined();
}

}  // namespace quorate::addon
