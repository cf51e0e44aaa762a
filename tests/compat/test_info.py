from mmcv import ops


def test_the_compiler_is_not_available():
    assert ops.get_compiler_version() == ops.get_compiling_cuda_version() == "n/a"
