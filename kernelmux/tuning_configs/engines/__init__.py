"""Tables as vLLM and SGLang write, name, look up and launch them: one module an engine, the words they share beside."""
