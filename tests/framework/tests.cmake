# Ranks as processes: the communicator cases, and ranks that die.
add_executable(mpi_tests framework/parallel/mpi/mpi_main.cpp framework/parallel/mpi/count_allocations.cpp)
target_link_libraries(mpi_tests PRIVATE osprey_framework osprey_cuda GTest::gtest)
add_executable(mpi_victim framework/parallel/mpi/victim.cpp)
target_link_libraries(mpi_victim PRIVATE osprey_framework osprey_cuda)

# Containers run as root, and have fewer cores than ranks; Open MPI itself leaks at exit.
set(OSPREY_MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
    ASAN_OPTIONS=detect_leaks=0)
foreach(ranks 1 2 4)
  add_test(NAME mpi:communicator_${ranks}
    COMMAND ${MPIEXEC_EXECUTABLE} -np ${ranks} --oversubscribe $<TARGET_FILE:mpi_tests>)
endforeach()
function(osprey_rank_dies how words)
  add_test(NAME mpi:rank_dies_${how} COMMAND
    ${CMAKE_CURRENT_SOURCE_DIR}/framework/parallel/mpi/rank_dies.sh ${MPIEXEC_EXECUTABLE}
    $<TARGET_FILE:mpi_victim> ${how} ${words})
endfunction()
osprey_rank_dies(kill "process rank 1 .* on signal 9")
osprey_rank_dies(throw "\\[rank 1\\] \\[victim\\] the disk of this rank is full")
osprey_rank_dies(unwind "\\[rank 1\\] an error ended this rank")
osprey_rank_dies(exit "Process name: .*,1\\]")
osprey_rank_dies(mismatch "\\[rank [012]\\] \\[sum\\] ranks disagree: rank 1 .* sum of 2 .* sum of 1 ")
set_tests_properties(mpi:communicator_1 mpi:communicator_2 mpi:communicator_4 mpi:rank_dies_kill
  mpi:rank_dies_throw mpi:rank_dies_unwind mpi:rank_dies_exit mpi:rank_dies_mismatch
  PROPERTIES LABELS mpi TIMEOUT 300 PROCESSORS 2 ENVIRONMENT "${OSPREY_MPI_ENVIRONMENT}")

# Two hosts on one machine; skipped, with the reason, where network namespaces cannot be made.
add_test(NAME mpi:two_hosts_communicator COMMAND
  ${CMAKE_CURRENT_SOURCE_DIR}/framework/parallel/two_hosts.sh ${MPIEXEC_EXECUTABLE} 1000000 $<TARGET_FILE:mpi_tests>)
set_tests_properties(mpi:two_hosts_communicator PROPERTIES LABELS mpi TIMEOUT 300 PROCESSORS 2
  SKIP_RETURN_CODE 77 ENVIRONMENT "${OSPREY_MPI_ENVIRONMENT}")

# Golden renderings of chat templates are what transformers makes; skipped where it is not installed.
add_test(NAME oracle:jinja COMMAND sh -c
  "command -v python3 >/dev/null || { echo python3 is not installed; exit 77; }; exec python3 make_golden.py check"
  WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/golden/jinja)
set_tests_properties(oracle:jinja PROPERTIES LABELS oracle TIMEOUT 120 SKIP_RETURN_CODE 77)
