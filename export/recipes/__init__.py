"""How each matrix is quantized: data-free, calibrated (GPTQ, AWQ), and mixed bits."""
