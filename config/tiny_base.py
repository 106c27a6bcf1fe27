# the start model of the embedded task, made with sft.py from scratch: python sft.py config/tiny_base.py
model = 'tiny'
data = 'sums:base'
out_dir = 'out/tiny_base'
