# The GPU side of the build, included by the top CMakeLists.txt: defines osprey_cuda, the object library that every
# program links for the cuda:: twins. Without nvcc it holds stubs that throw (kernels/no_cuda). docs/gpu.md is its manual.
set(OSPREY_CUDA auto CACHE STRING "auto: for NVIDIA GPUs where nvcc is found; on: fail without it; off: never")
set_property(CACHE OSPREY_CUDA PROPERTY STRINGS auto on off)
option(OSPREY_CUDNN "let cuDNN compute the attention that it can, where it is found" ON)
option(OSPREY_NCCL "let GPUs of several ranks talk through NCCL, where it is found" ON)
set(OSPREY_CUDA_WHEELS "" CACHE PATH "site-packages folder of a Python with CUDA libraries (nvidia/*/{include,lib})")
set(CUDNN_FRONTEND_DIR "" CACHE PATH "cudnn-frontend: a folder with include/cudnn_frontend.h")

# Builds stubs in place of kernels, or fails where the GPU side was asked for; ends this file.
macro(osprey_without_cuda why)
  if(OSPREY_CUDA STREQUAL "on")
    message(FATAL_ERROR "CUDA: ${why}; or configure with -DOSPREY_CUDA=off")
  endif()
  message(STATUS "CUDA: none (${why}); this osprey runs on the CPU only")
  file(GLOB no_cuda_sources CONFIGURE_DEPENDS kernels/no_cuda/*.cpp framework/parallel/no_nccl_comm.cpp)
  add_library(osprey_cuda OBJECT ${no_cuda_sources})
  target_link_libraries(osprey_cuda PUBLIC osprey_framework)
  return()
endmacro()

if(OSPREY_CUDA STREQUAL "off")
  osprey_without_cuda("switched off by OSPREY_CUDA")
endif()
include(CheckLanguage)
if(NOT DEFINED ENV{CUDACXX})  # CMake itself looks in PATH only
  find_program(OSPREY_NVCC nvcc NO_CACHE HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(OSPREY_NVCC)
    set(ENV{CUDACXX} ${OSPREY_NVCC})
  endif()
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  osprey_without_cuda("nvcc not found: install the CUDA toolkit, or name it by -DCMAKE_CUDA_COMPILER")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a CACHE STRING "GPUs to make code for: 80 (A100), 89 (L40), 90a (H100, H200), 100, 120")
endif()
enable_language(CUDA)
string(REGEX MATCH "^[0-9]+" cuda_major ${CMAKE_CUDA_COMPILER_VERSION})

# Places where parts of CUDA may lie: folders with include/ and lib/ in them. The toolkit may be whole, or little more
# than nvcc beside the wheels that PyTorch brought; wheels named by hand come before it, those found by looking after it.
set(site_packages ${OSPREY_CUDA_WHEELS})
if(NOT site_packages)
  string(REPLACE ":" "/..;" pythons "$ENV{PATH}/..")  # a Python in PATH has its packages beside its bin
  list(APPEND pythons $ENV{VIRTUAL_ENV} $ENV{CONDA_PREFIX} $ENV{HOME}/.local /usr/local /usr /opt/* /opt/*/.venv
    $ENV{HOME}/.pyenv/versions/* $ENV{HOME}/*conda*)
  list(TRANSFORM pythons APPEND /lib/python3*/*-packages)
  file(GLOB site_packages ${pythons})
endif()
list(TRANSFORM site_packages APPEND /nvidia/* OUTPUT_VARIABLE wheels)
file(GLOB wheels ${wheels})
set(toolkit ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT} ${CMAKE_CUDA_COMPILER_TOOLKIT_ROOT}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux)
if(OSPREY_CUDA_WHEELS)
  if(NOT wheels)
    message(FATAL_ERROR "OSPREY_CUDA_WHEELS: ${OSPREY_CUDA_WHEELS} has no folder nvidia/")
  endif()
  set(places ${wheels} ${toolkit} /usr/local /usr)
else()
  set(places ${toolkit} /usr/local /usr ${wheels})
endif()

# osprey_cuda_part(PART header library): sets PART_INCLUDE, PART_LIBRARY (a file) and PART_FOLDER where a place has both:
# header and library fit together. Libraries go by the name they are loaded by, which wheels have as well.
function(osprey_cuda_part part header library)
  foreach(place IN LISTS places)
    foreach(lib lib64 lib lib/${CMAKE_LIBRARY_ARCHITECTURE})
      if(EXISTS ${place}/include/${header} AND EXISTS ${place}/${lib}/${library})
        get_filename_component(include ${place}/include ABSOLUTE)
        get_filename_component(folder ${place}/${lib} ABSOLUTE)
        set(${part}_INCLUDE ${include} PARENT_SCOPE)
        set(${part}_FOLDER ${folder} PARENT_SCOPE)
        set(${part}_LIBRARY ${folder}/${library} PARENT_SCOPE)
        return()
      endif()
    endforeach()
  endforeach()
endfunction()
osprey_cuda_part(CUDART_STATIC cuda_runtime.h libcudart_static.a)
osprey_cuda_part(CUDART cuda_runtime.h libcudart.so.${cuda_major})
osprey_cuda_part(CUBLASLT cublasLt.h libcublasLt.so.${cuda_major})
osprey_cuda_part(CUDNN cudnn.h libcudnn.so.9)
osprey_cuda_part(NCCL nccl.h libnccl.so.2)
if(NOT CUBLASLT_LIBRARY OR NOT CUDART_STATIC_LIBRARY)
  osprey_without_cuda("libcublasLt.so.${cuda_major} or libcudart_static.a is neither beside ${CMAKE_CUDA_COMPILER} nor in \
Python wheels (OSPREY_CUDA_WHEELS)")
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}), code for ${CMAKE_CUDA_ARCHITECTURES}")

if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 and later have it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu kernels/cuda/*.cpp)
list(FILTER CUDA_SOURCES EXCLUDE REGEX "/(no_)?cudnn\\.cpp$")
add_library(osprey_cuda OBJECT ${CUDA_SOURCES})
list(JOIN CMAKE_CUDA_ARCHITECTURES ", " architectures)
target_compile_definitions(osprey_cuda PRIVATE "OSPREY_CUDA_ARCHITECTURES=\"${architectures}\"")
target_compile_options(osprey_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
  -DFMT_USE_CONSTEXPR=1  # fmt 9 takes nvcc for a compiler without it
  --expt-relaxed-constexpr
  -lineinfo  # source lines for ncu and compute-sanitizer; the code stays the same
  -Wreorder -Wdefault-stream-launch --Werror=cross-execution-space-call>)

# Linked libraries, with their folders in the rpath of every program. The runtime is static and loads the driver itself, so
# the program starts on machines that have none.
find_package(Threads REQUIRED)
add_library(osprey::cudart STATIC IMPORTED)
set_target_properties(osprey::cudart PROPERTIES IMPORTED_LOCATION ${CUDART_STATIC_LIBRARY})
target_include_directories(osprey::cudart SYSTEM INTERFACE ${CUDART_STATIC_INCLUDE})
target_link_libraries(osprey::cudart INTERFACE Threads::Threads ${CMAKE_DL_LIBS} rt)
add_library(osprey::cublaslt SHARED IMPORTED)
set_target_properties(osprey::cublaslt PROPERTIES IMPORTED_LOCATION ${CUBLASLT_LIBRARY})
target_include_directories(osprey::cublaslt SYSTEM INTERFACE ${CUBLASLT_INCLUDE})
target_link_libraries(osprey_cuda PUBLIC osprey_framework osprey::cudart osprey::cublaslt)
message(STATUS "CUDA: cuBLASLt from ${CUBLASLT_LIBRARY}")

# cuDNN is spoken to through the headers of cudnn-frontend, which load libcudnn (and libcudart beside it) only when a
# stream is opened: the program starts without them. rpath entries say where that looks.
list(TRANSFORM site_packages APPEND /include OUTPUT_VARIABLE frontend_of_pip)
find_path(CUDNN_FRONTEND_INCLUDE cudnn_frontend.h NO_CACHE
  HINTS ${CUDNN_FRONTEND_DIR} ${CUDNN_FRONTEND_DIR}/include ${PROJECT_SOURCE_DIR}/build/deps/cudnn-frontend/include
  ${frontend_of_pip})
set(without_cudnn "Osprey's own kernel computes all attention")
if(NOT OSPREY_CUDNN)
  message(STATUS "CUDA: cuDNN switched off; ${without_cudnn}")
elseif(NOT CUDNN_LIBRARY OR NOT CUDART_LIBRARY)
  message(STATUS "CUDA: cuDNN 9 (with libcudart) not found; ${without_cudnn}")
elseif(NOT CUDNN_FRONTEND_INCLUDE)
  message(STATUS "CUDA: cuDNN from ${CUDNN_LIBRARY}, but no headers of cudnn-frontend (launch/test fetches them, or "
    "CUDNN_FRONTEND_DIR); ${without_cudnn}")
else()
  set(OSPREY_HAS_CUDNN ON)
  message(STATUS "CUDA: cuDNN from ${CUDNN_LIBRARY}, cudnn-frontend from ${CUDNN_FRONTEND_INCLUDE}")
endif()
if(OSPREY_HAS_CUDNN)
  target_sources(osprey_cuda PRIVATE kernels/cuda/cudnn.cpp)
  target_include_directories(osprey_cuda SYSTEM PRIVATE ${CUDNN_FRONTEND_INCLUDE} ${CUDNN_INCLUDE})
  target_link_options(osprey_cuda INTERFACE -Wl,-rpath,${CUDNN_FOLDER} -Wl,-rpath,${CUDART_FOLDER})
else()
  target_sources(osprey_cuda PRIVATE kernels/cuda/no_cudnn.cpp)
endif()

# framework/parallel/nccl_comm.cpp is the only file outside kernels/cuda that sees CUDA's headers.
if(NCCL_LIBRARY AND OSPREY_NCCL)
  add_library(osprey::nccl SHARED IMPORTED)
  set_target_properties(osprey::nccl PROPERTIES IMPORTED_LOCATION ${NCCL_LIBRARY})
  target_include_directories(osprey::nccl SYSTEM INTERFACE ${NCCL_INCLUDE})
  target_link_libraries(osprey_cuda PUBLIC osprey::nccl)
  file(GLOB nccl_source CONFIGURE_DEPENDS framework/parallel/nccl_comm.cpp)
  message(STATUS "CUDA: NCCL from ${NCCL_LIBRARY}")
else()
  file(GLOB nccl_source CONFIGURE_DEPENDS framework/parallel/no_nccl_comm.cpp)
  message(STATUS "CUDA: NCCL not found or switched off; ranks with GPUs of their own are refused")
endif()
target_sources(osprey_cuda PRIVATE ${nccl_source})
