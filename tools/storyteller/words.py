"""The words of the storyteller's grammar: data only.

Every list is drawn from uniformly. Within one list no entry may be the beginning of another,
because the grammar is read left to right without looking ahead (the tests check it).
"""

GIRLS = (
    "Anna Clara Daisy Emma Freya Grace Hannah Ivy Julia Lily Maya Nora Olive Petra Rosa Sofia "
    "Tilda Vera Wilma Zoe Alice Bella Dora Edith Fiona Lucy Irene Laura Martha Ruth"
).split()
BOYS = (
    "Adam Ben Carl David Edgar Felix George Hugo Isaac Jack Leo Max Noah Oscar Peter Ralph "
    "Simon Tom Victor Will Arthur Bruno Conrad Daniel Frank Ernest Ivan Lucas Martin Robin"
).split()

TRADES = (
    "baker farmer miller sailor teacher weaver painter hunter gardener doctor blacksmith "
    "tailor carpenter shepherd potter singer cook clerk soldier fiddler butcher ferryman "
    "nurse poet locksmith woodcutter beekeeper chemist"
).split()
TRAITS = [
    "a kind", "a young", "an old", "a clever", "a quiet", "a brave", "a poor", "a rich",
    "a cheerful", "a tall", "a shy", "a patient", "a proud", "an honest", "a gentle", "a lazy",
]
HOBBIES = (
    "music dancing chess poetry fishing cooking painting riddles swimming maps stars birds "
    "roses horses boats puzzles stories gardens trains mountains theatre history clouds "
    "lullabies bicycles marbles butterflies numbers"
).split()
COLOURS = "red blue green yellow white black brown silver golden purple grey pink".split()
THINGS = (
    "lamp kite book drum basket hat coat key bell cup clock mirror ring rope spoon blanket "
    "flute ladder lantern bottle box map candle ball chair boat pillow scarf sword wheel "
    "broom umbrella whistle violin compass teapot shovel necklace puppet jar"
).split()

SPOTS = [
    "in the kitchen", "in the barn", "in the attic", "in the cellar", "in the garden",
    "in the chest", "under the bed", "under the table", "under the stairs", "under the bridge",
    "on the shelf", "on the roof", "on the wall", "on the bench", "behind the door",
    "behind the curtain", "behind the oak", "behind the stove", "near the well", "near the gate",
    "near the pond", "near the window", "inside the oven", "inside the cupboard",
    "beside the fireplace", "beside the fountain", "beneath the carpet", "beneath the willow",
]
HOMES = [
    "in a small house by the river", "in a cottage near the woods", "in a tower above the sea",
    "in a village in the hills", "at the edge of a quiet town", "on a farm in the valley",
    "in a mill beside the stream", "in a room above the inn", "on an island in the lake",
    "in a busy street by the harbour",
]

# Where one may go, and what for.
PLACES = {
    "market": ["buy some bread", "sell a dozen eggs", "look at the cloth"],
    "river": ["catch a fish", "wash the clothes", "watch the boats"],
    "forest": ["gather wood", "pick mushrooms", "listen to the owls"],
    "school": ["learn to read", "ring the bell", "borrow a pen"],
    "church": ["light a candle", "hear the choir", "rest in the shade"],
    "harbour": ["meet a ship", "mend the nets", "count the gulls"],
    "mill": ["grind the corn", "fetch a sack of flour", "see the great wheel turn"],
    "bakery": ["buy a warm loaf", "taste the cakes", "ask for work"],
    "library": ["read about kings", "return a novel", "sit by the fire"],
    "station": ["wait for the train", "post a letter", "greet a cousin"],
    "castle": ["see the queen", "guard the gate", "feed the peacocks"],
    "beach": ["collect shells", "build a fire", "swim in the waves"],
    "hill": ["fly a banner", "look at the moon", "roll a cheese"],
    "inn": ["drink some cider", "hear the news", "dance until midnight"],
    "farm": ["milk the cows", "pick apples", "chase the geese"],
    "theatre": ["see a play", "sing on the stage", "sweep the floor"],
    "bridge": ["throw stones", "watch the water", "cross to the other side"],
    "museum": ["see the dinosaur", "draw the statues", "find the lost crown"],
    "lighthouse": ["count the ships", "polish the glass", "visit the keeper"],
    "hospital": ["bring some flowers", "visit an uncle", "fetch the medicine"],
    "meadow": ["fly a dragon of paper", "lie among the daisies", "catch grasshoppers"],
    "orchard": ["pick plums", "climb a tree", "sleep in the grass"],
}

# What one may feel, and why.
FEELINGS = {
    "happy": ["the day was bright", "supper was ready", "a letter had come", "the work was done"],
    "sad": [
        "summer was over", "the milk was spilled", "nobody had written", "the old tree had fallen",
    ],
    "tired": [
        "the road was long", "the night had been short", "the load was heavy", "the hill was steep",
    ],
    "afraid": [
        "the wolves were howling", "the lights had gone out", "the ice was thin",
        "the stairs were dark",
    ],
    "proud": [
        "the bread had risen", "the wall was finished", "the song was perfect", "the prize was won",
    ],
    "angry": [
        "the gate was broken", "the soup was cold", "the thief had escaped",
        "the mice had eaten the cheese",
    ],
    "lonely": [
        "the house was silent", "the guests had left", "the village was asleep",
        "winter was coming",
    ],
    "surprised": [
        "the door was open", "the clock had stopped", "everybody was laughing",
        "the moon was green",
    ],
    "grateful": [
        "the neighbours had helped", "the roof was dry again", "the doctor had come quickly",
    ],
    "curious": [
        "the box was locked", "there were footprints in the mud", "a stranger had arrived",
        "the well was whispering",
    ],
}

BEASTS = (
    "fox owl hare goose cat dog horse deer mouse swan crow goat frog otter bear hedgehog "
    "squirrel badger donkey rabbit heron turtle"
).split()
DOINGS = [
    "asleep under a tree", "drinking from the stream", "running across the field",
    "hiding in the hedge", "looking for food", "playing with its young", "sitting on a stone",
    "crossing the road",
]
DISHES = [
    "a bowl of soup", "some apple pie", "a plate of beans", "fresh bread and honey",
    "a roasted carrot", "two boiled eggs", "cheese and onions", "a sweet pear", "hot porridge",
    "pancakes with jam", "a slice of cake", "potatoes and salt", "roast chicken",
    "cherry jam on toast", "rice with mushrooms",
]

# The weather: how a scene opens, what is said of it, what it makes people say.
WEATHERS = {
    "it was raining": (
        ["The rain drummed on the roofs.", "The puddles grew deep.", "Water ran down the street."],
        ["What a wet day", "My boots are full of water"],
    ),
    "the sun was shining": (
        ["The sun warmed the stones.", "The shadows were short and sharp.",
         "Bees hummed in the warm light."],
        ["What a fine day", "The light is lovely"],
    ),
    "snow was falling": (
        ["The snow covered the fields.", "The rooftops turned white.",
         "Snowflakes danced in the air."],
        ["My hands are frozen", "How white the world is"],
    ),
    "a strong wind was blowing": (
        ["The wind shook the shutters.", "The trees bent and groaned.",
         "Dry leaves raced along the lane."],
        ["Hold on to your hat", "That wind is wild"],
    ),
    "fog lay over the land": (
        ["The fog hid the houses.", "The lamps were only faint smudges.",
         "Nobody could see the church."],
        ["I can hardly see my feet", "This fog is as thick as wool"],
    ),
    "a storm was near": (
        ["The storm growled in the distance.", "The thunder came closer.",
         "The sky flashed twice."],
        ["We should hurry indoors", "Did you hear the thunder"],
    ),
    "it was very hot": (
        ["The heat lay on the village.", "The grass was dry and yellow.",
         "Even the flies were sleepy."],
        ["I need some cold water", "It is too hot to work"],
    ),
    "the air was cold and clear": (
        ["The frost glittered on the gate.", "The cold pinched every nose.",
         "The pond was covered with ice."],
        ["My nose is cold", "How clear the air is"],
    ),
}

TIMES = [
    "One morning", "One evening", "The next day", "That night", "A week later", "Soon afterwards",
    "On Sunday", "On market day", "In the spring", "In the autumn", "At noon", "Before sunrise",
]
OPENINGS = [
    "Once upon a time there lived", "Long ago there was", "In a far country there lived",
    "There was once", "Many years ago there lived", "Not far from here there was",
]
LONG_OPENINGS = [
    "Here begins the long tale of", "Sit down and hear the whole story of",
    "This is the great saga of",
]
MOVES = ["went", "walked", "ran", "hurried", "strolled", "rode"]
PUTS = ["put", "left", "hid", "placed"]
KINDNESSES = [
    "smiled at", "waved to", "thanked", "helped", "sang for", "laughed with", "danced with",
    "waited for",
]
GREETINGS = ["Hello", "Good day", "Welcome", "Listen", "Well met", "Good evening"]
REPLIES = [
    "I was just thinking of you", "How good to see you", "You are always welcome here",
    "I have no time today", "Come and sit beside me", "Tell me everything",
]
SAYINGS = [
    "A friend is worth more than gold", "Slow steps climb the highest hill",
    "No night lasts for ever", "An open door needs no key", "Kind words cost nothing",
    "Every river finds the sea", "The early bird sees the dawn", "Old roads lead to new places",
    "A full pot needs no song", "Small seeds make great trees",
    "Many hands lift the heaviest stone", "Truth is a good lantern",
    "A borrowed horse has hard hooves", "Patience is the best medicine",
    "Laughter makes the road shorter",
]
ENDINGS = ["In the end", "At last", "And so", "When all was done"]
FATES = [
    "went home and slept well", "lived happily for many years", "told the story to everyone",
    "built a new house", "planted a tree to remember it all", "never felt alone again",
    "learned to be patient",
]
