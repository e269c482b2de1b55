"""How the images of the regret benchmark's tasks come about; `make_tasks.py` lists and writes them."""
