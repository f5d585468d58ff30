if(TARGET osprey)
  foreach(name train_rank_dies)
    add_test(NAME mpi:${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/${name}.sh
      $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
    set_tests_properties(mpi:${name} PROPERTIES LABELS "mpi;e2e" TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)
  endforeach()
endif()
