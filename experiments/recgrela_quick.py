from linseqrec.config import Experiment
def get_config(): return Experiment()
