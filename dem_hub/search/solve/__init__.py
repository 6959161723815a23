"""How a search solves for coefficients, once losses are known as functions of them."""
