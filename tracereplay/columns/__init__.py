"""A pass by columns: what its steps have in common once, and of each step a few bytes.

tensors   one tensor of one call, as rows over all ranks
kinds     what steps that are alike do
store     arrays over the steps
calls     its calls, counted over all steps
column    the rows and the tensors of a table
stacks    a tensor of many steps as one array
read      from a trace's segments to all of that
"""
