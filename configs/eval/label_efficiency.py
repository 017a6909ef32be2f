"""What a head is worth that was trained on a part of the labels: fractions, shots, three draws by patient.

    python -m cxr_jax.evaluate --config=configs/eval/label_efficiency.py --workdir=runs/eval \\
        --config.init_from=runs/small_mae --config.data.path=data/cxr_small \\
        --config.data.where.source=nih-chestxray14 --config.data.targets="('sex:F',)"

The linear head of configs/eval/linear_cached.py; a shot is a patient with all images. Training patients come from the
training split, selection patients from the selection split, cut in the same proportion
(`label_efficiency.selection=all` keeps it whole).

Measured on two shared CPU cores that had much else to do, 156 s (sex) and 226 s (tuberculosis) with all three columns,
on the backbone of configs/pretrain/small_mae.py after 2,000 steps: mean AUROC +- standard deviation over three draws.

    sex on NIH              pretrained         random network     hand-made
      1 %       3 patients  0.521 +- 0.027     0.514 +- 0.042     0.543 +- 0.065
      3 %      10           0.477 +- 0.003     0.517 +- 0.059     0.547 +- 0.063
      8 shots  16           0.521 +- 0.029     0.508 +- 0.063     0.585 +- 0.040
      10 %     33           0.590 +- 0.023     0.559 +- 0.015     0.690 +- 0.034
      30 %     98           0.609 +- 0.058     0.503 +- 0.017     0.782 +- 0.054
      100 %   327           0.696 +- 0.044     0.620 +- 0.008     0.875 +- 0.003
    tuberculosis on Shenzhen
      1 %       4 patients  0.698 +- 0.128     0.749 +- 0.020     0.763 +- 0.102
      3 %      10           0.739 +- 0.169     0.633 +- 0.275     0.786 +- 0.113
      8 shots  16           0.776 +- 0.071     0.653 +- 0.270     0.821 +- 0.048
      10 %     35           0.837 +- 0.013     0.859 +- 0.029     0.892 +- 0.005
      30 %    105           0.883 +- 0.019     0.871 +- 0.019     0.925 +- 0.013
      100 %   351           0.908 +- 0.001     0.901 +- 0.003     0.938 +- 0.006

The bootstrap interval of each mean over test patients stands in results.json; at 100 % of sex [0.61, 0.78], [0.54,
0.70], [0.82, 0.93]. With few labels this pretraining does not help; with all it lifts sex.
"""

from ml_collections import ConfigDict

from configs.eval import linear_cached


def get_config():
    config = linear_cached.get_config()
    config.protocol = "label_efficiency"
    config.label_efficiency = ConfigDict(
        {
            "fractions": (0.01, 0.03, 0.1, 0.3, 1.0),
            "shots": (8,),
            "seeds": (0, 1, 2),
            "selection": "in_proportion",
        }
    )
    return config
