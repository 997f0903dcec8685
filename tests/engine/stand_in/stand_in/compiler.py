"""The half of a Triton backend that compiles. With TRITON_INTERPRET=1 nothing asks it to."""

from triton.backends.compiler import BaseBackend


class Never(BaseBackend):
    binary_ext = ""

    @staticmethod
    def supports_target(target):
        return target.backend == "cpu"

    def hash(self):
        return "stand-in"

    def parse_options(self, options):
        return options

    def add_stages(self, stages, options, language):
        raise RuntimeError("The stand-in for a GPU compiles no kernels; set TRITON_INTERPRET=1.")

    def load_dialects(self, context):
        pass

    def get_module_map(self):
        return {}
