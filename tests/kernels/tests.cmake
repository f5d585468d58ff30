# The kernels once more on the lower instruction sets. A CPU that lacks one skips it visibly: the
# program says so in its error and ctest shows "Skipped".
if(TARGET kernels_tests)
  foreach(isa portable avx2 avx512)
    add_test(NAME kernels:all_on_${isa} COMMAND kernels_tests --gtest_brief=1)
    set_tests_properties(kernels:all_on_${isa} PROPERTIES LABELS unit
      ENVIRONMENT "OSPREY_ISA=${isa};OMP_NUM_THREADS=2" SKIP_REGULAR_EXPRESSION "but this CPU has")
  endforeach()
endif()
