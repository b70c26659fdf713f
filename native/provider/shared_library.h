// A library that is opened when it is needed and never linked, so that the addon loads where the library is missing.
#pragma once

#include <string>

namespace quorate {

class SharedLibrary {
 public:
  struct Description {
    std::string title;         // "The RDMA verbs library"
    std::string name;          // "libibverbs"
    std::string howToInstall;  // whole sentences
  };

  // Throws VerbsError QUORATE_NO_LIBRARY, which says how to install it, if it cannot be opened.
  SharedLibrary(std::string soname, Description description);
  ~SharedLibrary();  // closes it
  SharedLibrary(const SharedLibrary&) = delete;
  SharedLibrary& operator=(const SharedLibrary&) = delete;

  // Throws VerbsError QUORATE_NO_LIBRARY if it has no such symbol.
  template <typename Function>
  void resolve(const char* symbol, Function* function) const {
    *function = reinterpret_cast<Function>(required(symbol));
  }

  // Null if it has no such symbol.
  template <typename Function>
  void resolveOptional(const char* symbol, Function* function) const {
    *function = reinterpret_cast<Function>(find(symbol));
  }

  // From now on it stays open until the process ends.
  void keepOpen() { handle_ = nullptr; }

 private:
  void* find(const char* symbol) const;
  void* required(const char* symbol) const;

  const std::string soname_;
  const Description description_;
  void* handle_;
};

}  // namespace quorate
