if(TARGET osprey)
  add_test(NAME mpi:two_hosts_train COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/launch/two_hosts_train.sh
    $<TARGET_FILE:osprey> ${PROJECT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
  set_tests_properties(mpi:two_hosts_train PROPERTIES LABELS "mpi;e2e" TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)
endif()
