# The GPU side of the build, included by the top CMakeLists.txt: defines osprey_cuda, the object library that every
# program links for the cuda:: twins. Without nvcc it holds stubs that throw (kernels/no_cuda).
set(OSPREY_CUDA auto CACHE STRING "auto: for NVIDIA GPUs where nvcc is found; on: fail without it; off: never")
set_property(CACHE OSPREY_CUDA PROPERTY STRINGS auto on off)

set(OSPREY_HAS_CUDA OFF)
if(NOT OSPREY_CUDA STREQUAL "off")
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a CACHE STRING "GPUs to make code for: 80 (A100), 89 (L40), 90a (H100, H200), 100, 120")
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know that nvcc can
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    find_package(CUDAToolkit QUIET)
    set(OSPREY_HAS_CUDA ON)
  elseif(OSPREY_CUDA STREQUAL "on")
    message(FATAL_ERROR "nvcc not found: install the CUDA toolkit, or configure with -DOSPREY_CUDA=off")
  endif()
endif()

if(NOT OSPREY_HAS_CUDA)
  message(STATUS "CUDA: none (nvcc not found or switched off); this osprey runs on the CPU only")
  file(GLOB NO_CUDA_SOURCES CONFIGURE_DEPENDS kernels/no_cuda/*.cpp)
  add_library(osprey_cuda OBJECT ${NO_CUDA_SOURCES} framework/parallel/no_nccl_comm.cpp)
  target_link_libraries(osprey_cuda PUBLIC osprey_framework)
  return()
endif()

set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # so the program starts on machines without a driver or a toolkit
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu kernels/cuda/*.cpp)
list(FILTER CUDA_SOURCES EXCLUDE REGEX "/cudnn\\.cpp$")
add_library(osprey_cuda OBJECT ${CUDA_SOURCES})
target_link_libraries(osprey_cuda PUBLIC osprey_framework CUDA::cudart_static CUDA::cublasLt)

# Several GPUs: NCCL, from the system, the toolkit or where PyPI's nvidia-nccl puts it.
find_path(NCCL_INCLUDE_DIR nccl.h PATHS ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES nvidia/nccl/include)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 PATHS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}
             PATH_SUFFIXES lib lib64 nvidia/nccl/lib)
if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
  target_sources(osprey_cuda PRIVATE framework/parallel/nccl_comm.cpp)
  target_include_directories(osprey_cuda SYSTEM PRIVATE ${NCCL_INCLUDE_DIR})
  target_link_libraries(osprey_cuda PUBLIC ${NCCL_LIBRARY})
  message(STATUS "NCCL: ${NCCL_LIBRARY}")
else()
  target_sources(osprey_cuda PRIVATE framework/parallel/no_nccl_comm.cpp)
  message(STATUS "NCCL: none; one GPU at most")
endif()
target_compile_definitions(osprey_cuda PRIVATE "OSPREY_CUDA_ARCHITECTURES=\"${CMAKE_CUDA_ARCHITECTURES}\"")
target_compile_options(osprey_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
  -DFMT_USE_CONSTEXPR=1  # fmt 9 takes nvcc for a compiler without it
  --expt-relaxed-constexpr>)
message(STATUS "CUDA: ${CUDAToolkit_VERSION}, code for ${CMAKE_CUDA_ARCHITECTURES}")
