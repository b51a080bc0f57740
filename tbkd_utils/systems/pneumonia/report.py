"""The parts of the report."""

from tbkd_utils.experiments.system import Item

ITEMS = (
    Item("The radiographs", "Patients and images of each part; no patient is in two parts.", ("radiographs",),
         ("parts",)),
    Item("What training sees", "One radiograph, squashed to a square, under the nine augmentations.", ("augmented",)),
    Item("Training", "The focal loss per epoch.", ("training",)),
    Item("The networks beside the paper's", "Filled: here, 95% Wilson interval. Hollow: the paper's, from its counts.",
         ("networks",), ("networks", "ranking")),
    Item("Operating points", "A threshold belongs to the radiographs that it was chosen on.", ("operating_curves",),
         ("operating_points",)),
    Item("The imbalance, corrected four ways", "Accuracy and calibration of each way; `both` is the paper's.",
         ("explained_calibration",), ("arms", "arm_differences", "odds_ratios")),
    Item("The leak", "The same files, divided by patient and by image.", ("leak",), ("leak", "divisions")),
    Item("Where the network looks", "Beside guesses that look at no disease; dotted, the best of them.",
         ("looks_test_set", "examples_test_set"), ("transfer", "looks", "looks_differences")),
    Item("On other radiographs with boxes", "Trained on children, scored on adults of another hospital.",
         ("looks_nih", "examples_nih", "looks_rsna", "examples_rsna")),
    Item("Seeds", "The recipe's own network from several seeds of its head.", (), ("seeds",)),
)  # fmt: skip
