# The addon as users build it (node-gyp, prebuildify). Variants with sanitizers for development: CMakeLists.txt.
# libibverbs is not linked: native/provider/ibverbs opens it at run time, so that the addon loads where it is missing.
{
  "targets": [
    {
      "target_name": "quorate",
      "sources": ["<!@(node scripts/native-sources.mjs)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")", "native"],
      "defines": ["NAPI_VERSION=8", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "cflags!": ["-fno-exceptions", "-O3"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-O3", "-std=gnu++17", "-std=gnu++1y", "-std=gnu++14"],
      "cflags": ["-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
      "cflags_cc": ["-std=c++20", "-fexceptions", "-frtti", "-Wno-unused-parameter"],
      "libraries": ["-ldl", "-lrt", "-lpthread"]
    }
  ]
}
